"""OpenVINO behind the same interface as ONNX Runtime: ONNX in, constant inputs bound once.

Intel boxes are the commonest edge machines. Which of the two is faster depends on the processor,
so nothing here is preferred by name: `engines.negotiate` measures.
"""

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
    """One compiled model and one infer request. Not thread-safe: one owner thread."""

    def __init__(self, path: Path, threads: int = 0, precision: str = "fp32") -> None:
        ov = _openvino()
        if ov is None:
            raise EngineError("openvino is not installed: pip install openvino (extra 'openvino')")
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(thread_count(threads)),
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
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1][:200]
            raise EngineError(f"{path} is not an engine OpenVINO can load: {last}") from error
        self._ov = ov
        self._held: dict[str, Any] = {}

    def _set(self, name: str, value: Array) -> None:
        # shared_memory: the request reads the array itself, so the array must outlive the call.
        array = np.require(value, requirements=["C", "W"])  # OpenVINO refuses read-only memory
        self._held[name] = (array, self._ov.Tensor(array, shared_memory=True))
        self._request.set_tensor(name, self._held[name][1])

    def bind(self, name: str, value: Array) -> None:
        """Set a constant input until it is bound again; the array must not change meanwhile."""
        self._set(name, value)

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run with the bound inputs and `feeds`; every output as an array of its own.

        Raises EngineError when an input does not fit the graph.
        """
        try:
            for name, value in feeds.items():
                self._set(name, value)
            self._request.infer()
        except RuntimeError as error:
            last = str(error).strip().splitlines()[-1][:200]
            raise EngineError(f"OpenVINO could not run the engine: {last}") from error
        return {name: self._request.get_tensor(name).data.copy() for name in self.outputs}
