"""OpenVINO behind the same interface as ONNX Runtime: ONNX in, constant inputs bound once.

Intel boxes are the commonest edge machines. Which of the two is faster depends on the processor,
so nothing here is preferred by name: `engines.negotiate` measures.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.session import RuntimeInfo, thread_count

Array = NDArray[Any]
EXACT = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}
"""Precision of what is not quantised. Named always: left alone, OpenVINO takes bf16 where the
processor has it, and an engine that passed the gate as FP32 would run as another."""


def _openvino() -> Any:
    # Importing openvino reports the import to its maker over the network, from a process forked
    # among our threads (seen to hang a station's end). Absent, its package takes its own stub.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError:
        return None
    return openvino


def openvino_info() -> RuntimeInfo:
    """Whether OpenVINO can run here, and in which precisions."""
    ov = _openvino()
    if ov is None:
        return RuntimeInfo("openvino", False, "openvino is not installed (extra 'openvino')")
    core = ov.Core()
    if "CPU" not in core.available_devices:
        return RuntimeInfo("openvino", False, "openvino finds no CPU plugin; install it again")
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precisions = ("fp32", "int8", *(["bf16"] if "BF16" in able else []))
    return RuntimeInfo("openvino", True, f"openvino {ov.__version__.split('-')[0]}", precisions)


class OpenVinoSession:
    """One compiled model; each calling thread has an infer request of its own.

    With `callers` > 1 the model has as many streams: with one stream their calls would queue.
    """

    def __init__(
        self, path: Path, threads: int = 0, precision: str = "fp32", callers: int = 1
    ) -> None:
        ov = _openvino()
        if ov is None:
            raise EngineError("openvino is not installed: pip install openvino (extra 'openvino')")
        settings = {
            "PERFORMANCE_HINT": "LATENCY" if callers == 1 else "THROUGHPUT",
            "NUM_STREAMS": str(callers),
            "INFERENCE_NUM_THREADS": str(thread_count(threads) * callers),
            "INFERENCE_PRECISION_HINT": EXACT[precision.split("-", maxsplit=1)[0]],
            # Pinned workers fight with the camera and the ledger for one core while another idles.
            "ENABLE_CPU_PINNING": "NO",
        }
        try:
            core = ov.Core()
            model = core.read_model(str(path))
            # Names as the ONNX file has them: compiling adds those of fused inner nodes.
            self.inputs = tuple(port.any_name for port in model.inputs)
            self.outputs = tuple(port.any_name for port in model.outputs)
            self._model = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1][:200]
            raise EngineError(f"{path} is not an engine OpenVINO can load: {last}") from error
        self._ov = ov
        self._of_thread = threading.local()
        self._held: dict[str, Any] = {}
        self._version = 0

    def _tensor(self, value: Array) -> tuple[Array, Any]:
        # shared_memory: the request reads the array itself, so the array must outlive the call.
        array = np.require(value, requirements=["C", "W"])  # OpenVINO refuses read-only memory
        return array, self._ov.Tensor(array, shared_memory=True)

    def bind(self, name: str, value: Array) -> None:
        """Set a constant input until it is bound again; the array must not change meanwhile."""
        self._held[name] = self._tensor(value)
        self._version += 1

    def _request(self) -> Any:
        """The calling thread's request, with the constant inputs as they are now."""
        mine = self._of_thread
        if getattr(mine, "version", None) != self._version:
            mine.request, mine.version = self._model.create_infer_request(), self._version
            for name, (_, tensor) in self._held.items():
                mine.request.set_tensor(name, tensor)
        return mine.request

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run with the bound inputs and `feeds`; every output as an array of its own.

        Raises EngineError when an input does not fit the graph.
        """
        try:
            request = self._request()
            kept = {name: self._tensor(value) for name, value in feeds.items()}
            for name, (_, tensor) in kept.items():
                request.set_tensor(name, tensor)
            request.infer()
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1][:200]
            raise EngineError(f"OpenVINO could not run the engine: {last}") from error
        return {name: request.get_tensor(name).data.copy() for name in self.outputs}
