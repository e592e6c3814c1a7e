"""Runtimes: what can run an engine on this machine, and why another cannot."""

import importlib.util
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from engines.buffers import Buffers
from engines.cuda import missing
from engines.errors import EngineError

Array = NDArray[Any]
TENSORRT = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Runtime -> Python package."""
MAX_THREADS = 4
"""More threads gain little on 226 tokens and take cores from the camera and the ledger."""


@dataclass(frozen=True)
class RuntimeInfo:
    """One runtime; `reason` says why it is not available, or what it is."""

    name: str
    available: bool
    reason: str
    precisions: tuple[str, ...] = ()


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime


def _cuda_info() -> RuntimeInfo:
    ort = _onnxruntime()
    precisions = ("fp32", "fp16")
    if ort is None:
        return RuntimeInfo("ort-cuda", False, "onnxruntime-gpu is not installed (extra 'gpu')")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        reason = f"onnxruntime {ort.__version__} here is the CPU build (extra 'gpu' has CUDA)"
        return RuntimeInfo("ort-cuda", False, reason, precisions)
    gone = missing()
    return RuntimeInfo("ort-cuda", not gone, gone or f"onnxruntime {ort.__version__}", precisions)


def _cpu_info() -> RuntimeInfo:
    ort = _onnxruntime()
    if ort is None:
        return RuntimeInfo("ort-cpu", False, "onnxruntime is not installed (extra 'cpu')")
    return RuntimeInfo("ort-cpu", True, f"onnxruntime {ort.__version__}", ("fp32", "int8"))


def _tensorrt_info(name: str, package: str, how: str) -> RuntimeInfo:
    precisions = ("fp16", "bf16")
    if importlib.util.find_spec(package) is None:
        return RuntimeInfo(name, False, f"{package} is not installed ({how})", precisions)
    gone = missing()
    if gone:
        reason = f"builds engines here (export --target), but to run them: {gone}"
        return RuntimeInfo(name, False, reason, precisions)
    return RuntimeInfo(name, True, package, precisions)


def runtimes() -> list[RuntimeInfo]:
    """Every runtime in order of preference, each with its reason."""
    from engines.openvino_session import openvino_info

    return [
        _tensorrt_info("tensorrt", "tensorrt", "NVIDIA's own package index"),
        _tensorrt_info("tensorrt-rtx", "tensorrt_rtx", "tensorrt-rtx-cu13, extra 'gpu'"),
        _cuda_info(),
        openvino_info(),
        _cpu_info(),
    ]


def choose(runtime: str = "auto") -> RuntimeInfo:
    """The runtime to use; EngineError with the reason when the named one cannot run here."""
    known = {r.name: r for r in runtimes()}
    if runtime == "auto":
        for info in known.values():
            if info.available:
                return info
        raise EngineError("no runtime can run here: install onnxruntime (extra 'cpu')")
    if runtime not in known:
        raise EngineError(f"unknown runtime '{runtime}': use auto or one of {', '.join(known)}")
    if not known[runtime].available:
        raise EngineError(f"runtime '{runtime}' cannot run here: {known[runtime].reason}")
    return known[runtime]


def thread_count(threads: int = 0) -> int:
    """`threads`, or the cores this process may use, at most MAX_THREADS."""
    return threads or min(len(os.sched_getaffinity(0)), MAX_THREADS)


class Session:
    """An ONNX Runtime session whose constant inputs are bound once. Several threads may run it.

    Each calling thread has a binding of its own; weights and bound inputs are there once.
    """

    def __init__(self, path: Path, runtime: str = "ort-cpu", threads: int = 0) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = thread_count(threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take a core from the camera and the ledger between parts.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        cuda = runtime == "ort-cuda"
        providers: list[Any] = ["CPUExecutionProvider"]
        if cuda:
            # TF32 off: distances of a query that is in memory must stay below the snap.
            providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
        try:
            self._session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:
            first = str(error).splitlines()[0][:200]
            raise EngineError(f"{path} is not an engine this runtime can load: {first}") from error
        self._ort, self._device = ort, "cuda" if cuda else "cpu"
        self._of_thread = threading.local()
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())
        self._shapes = {p.name: tuple(p.shape) for p in self._session.get_inputs()}
        self._made = {o.name: (tuple(o.shape), o.type) for o in self._session.get_outputs()}
        self._buffers = Buffers()
        self._held: dict[str, Any] = {}
        self._version = 0

    def bind(self, name: str, value: Array) -> None:
        """Put a constant input on the device, until it is bound again. Not during a `run`."""
        array = np.asarray(value, order="C")
        self._held[name] = self._ort.OrtValue.ortvalue_from_numpy(array, self._device, 0)
        self._version += 1

    def _binding(self) -> Any:
        """The calling thread's binding, with the constant inputs as they are now."""
        mine = self._of_thread
        if getattr(mine, "version", None) != self._version:
            mine.binding, mine.version = self._session.io_binding(), self._version
            for name, held in self._held.items():
                mine.binding.bind_ortvalue_input(name, held)
        return mine.binding

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run with the bound inputs and `feeds`; every output as an array of its own.

        Inputs are read where they lie; outputs are written into arrays that earlier callers have
        let go (`engines.buffers`).
        """
        binding = self._binding()
        sizes: dict[str, int] = {}
        for name, value in feeds.items():
            array = np.asarray(value, order="C")
            binding.bind_cpu_input(name, array)
            known = zip(self._shapes.get(name, ()), array.shape, strict=False)
            sizes |= {axis: size for axis, size in known if isinstance(axis, str)}
        out = {name: self._bind_output(binding, name, sizes) for name in self.outputs}
        self._session.run_with_iobinding(binding)
        late = [name for name, array in out.items() if array is None]
        if late:
            made = dict(zip(self.outputs, binding.get_outputs(), strict=True))
            out |= {name: made[name].numpy() for name in late}
        return cast(dict[str, Array], out)

    def _bind_output(self, binding: Any, name: str, sizes: dict[str, int]) -> Array | None:
        """The array that the output will be in; None where its size is not known before."""
        axes, kind = self._made[name]
        shape = [sizes.get(a) if isinstance(a, str) else a for a in axes]
        if kind != "tensor(float)" or None in shape:
            binding.bind_output(name, "cpu")
            return None
        array = self._buffers.take(cast(list[int], shape), np.float32)
        if len(shape) == 1:
            array.fill(np.nan)  # the score: an old one must never pass for this part's
        place = array.__array_interface__["data"][0]
        binding.bind_output(name, "cpu", 0, np.float32, shape, place)
        return array


class AnySession(Protocol):
    """What a detector needs of a runtime; see `Session` for the meaning of each."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def bind(self, name: str, value: Array) -> None:
        """Set a constant input."""

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run with the bound inputs and `feeds`; from any thread."""


def open_session(
    path: Path,
    runtime: str = "ort-cpu",
    threads: int = 0,
    precision: str = "fp32",
    callers: int = 1,
) -> AnySession:
    """A session of the named runtime; EngineError when the file cannot be loaded by it.

    `callers` threads will run it at once, each with `threads` threads' work.
    """
    if runtime == "openvino":
        from engines.openvino_session import OpenVinoSession

        return OpenVinoSession(path, threads, precision, callers)
    if runtime in TENSORRT:
        return _tensorrt_session(path, runtime, precision)
    if runtime == "ort-cuda" and precision != "fp32":
        from engines.cuda_graph import CudaGraphSession

        return CudaGraphSession(path)
    return Session(path, runtime, threads)


def _tensorrt_session(path: Path, runtime: str, precision: str) -> AnySession:
    """The engine kept for this GPU, made ahead of time beside the bundle, or built now."""
    from engines.negotiate import cache_folder
    from engines.tensorrt_session import open_tensorrt

    ahead = path.parent.with_name(path.parent.name + ".tensorrt")
    return open_tensorrt(path, precision, TENSORRT[runtime], cache_folder() / "tensorrt", ahead)
