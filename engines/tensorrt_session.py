"""Runs a TensorRT engine: memory on the device, constant inputs bound once, one call per run.

This machine has no GPU: the code was read against TensorRT's documentation and runs in the tests on
doubles of the driver and of TensorRT; what remains is `pytest -m gpu` on a machine with a GPU.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.cuda import Buffer, Cuda
from engines.errors import EngineError
from engines.tensorrt import build_engine, graph_sha, kept, load_engine, tensorrt

Array = NDArray[Any]
_TYPES: dict[str, Any] = {
    "FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64,
    "BOOL": np.bool_, "UINT8": np.uint8, "INT8": np.int8,
}  # fmt: skip


def _kind(value: Any) -> str:
    return str(value).split(".")[-1]


class TensorRtSession:
    """One engine and one execution context; calls from several threads take turns."""

    def __init__(self, engine: Any, trt: Any, cuda: Cuda, kernels: Path | None = None) -> None:
        self._engine, self._trt, self._cuda, self._kernels = engine, trt, cuda, kernels
        self._lock = threading.Lock()
        self._runtime_cache: Any = None
        self._context = self._new_context()
        if self._context is None:
            raise EngineError("TensorRT could not make an execution context: too little GPU memory")
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        way = {n: _kind(engine.get_tensor_mode(n)) for n in names}
        self.inputs = tuple(n for n in names if way[n] == "INPUT")
        self.outputs = tuple(n for n in names if way[n] == "OUTPUT")
        self._dtype = {n: _TYPES[_kind(engine.get_tensor_dtype(n))] for n in names}
        self._on_host = {n: _kind(engine.get_tensor_location(n)) == "HOST" for n in names}
        self._buffers = {n: Buffer(cuda) for n in names}
        self._kept: dict[str, Array] = {}

    def _new_context(self) -> Any:
        """TensorRT-RTX compiles kernels at first use: they are kept on disk, and the whole engine

        is replayed as one CUDA graph. TensorRT has neither setting and needs neither.
        """
        if not hasattr(self._trt, "CudaGraphStrategy"):
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        if self._kernels is not None and self._kernels.is_file():
            cache.deserialize(self._kernels.read_bytes())  # refused when of another GPU or version
        config.set_runtime_cache(cache)
        self._runtime_cache = cache
        return self._engine.create_execution_context(config)

    def _set(self, name: str, value: Array) -> None:
        array = np.asarray(value, self._dtype[name], order="C")
        if -1 in tuple(self._engine.get_tensor_shape(name)) and not self._context.set_input_shape(
            name, tuple(array.shape)
        ):
            low, _, high = (tuple(s) for s in self._engine.get_tensor_profile_shape(name, 0))
            raise EngineError(
                f"{name} {array.shape} does not fit the TensorRT engine, built for {low} to "
                f"{high}: use the FP32 engine (runtime ort-cuda) for larger memories or batches"
            )
        self._kept[name] = array  # the copy is asynchronous: the array must outlive it
        on_host = self._on_host[name]
        address = int(array.ctypes.data) if on_host else self._buffers[name].put(array)
        self._context.set_tensor_address(name, address)

    def bind(self, name: str, value: Array) -> None:
        """Put a constant input on the device, until it is bound again."""
        with self._lock:
            self._cuda.use()
            self._set(name, value)
            self._cuda.synchronize()

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run with the bound inputs and `feeds`; every output as an array of its own.

        Raises EngineError when an input is missing or outside the engine's profile.
        """
        with self._lock:
            self._cuda.use()
            for name, value in feeds.items():
                self._set(name, value)
            lacking = self._context.infer_shapes()
            if lacking:
                raise EngineError(f"the TensorRT engine lacks inputs: {', '.join(lacking)}")
            out = {name: self._output(name) for name in self.outputs}
            if not self._context.execute_async_v3(self._cuda.stream):
                raise EngineError("TensorRT could not start the engine: see its log")
            for name, array in out.items():
                self._cuda.download(array, self._buffers[name].address)
            self._cuda.synchronize()
            self._keep_kernels()
            return out

    def _output(self, name: str) -> Array:
        array = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtype[name])
        self._context.set_tensor_address(name, self._buffers[name].fit(array.nbytes))
        return array

    def _keep_kernels(self) -> None:
        """After the first run: what was compiled for it is there at the next start."""
        cache, self._runtime_cache = self._runtime_cache, None
        if cache is None or self._kernels is None:
            return
        with contextlib.suppress(OSError):  # a cache that cannot be written costs seconds only
            part = self._kernels.with_suffix(".part")
            part.write_bytes(bytes(cache.serialize()))
            part.replace(self._kernels)


def _log(text: str) -> None:
    logging.getLogger("engines.tensorrt").info(text)


def open_tensorrt(
    onnx_path: Path,
    precision: str,
    package: str | None,
    cache: Path,
    ahead: Path | None = None,
    say: Callable[[str], None] = _log,
) -> TensorRtSession:
    """The engine of a graph on the GPU that is here: one that is kept, or built now with progress.

    cache: folder it is kept in; ahead: folder of engines built ahead of time (only read).
    Raises EngineError in one sentence: no package, no driver, no GPU, a build or load that fails.
    """
    trt, cuda = tensorrt(package), Cuda()
    gpu = cuda.gpu()
    made = ahead / f"{onnx_path.stem}.{gpu.target}.engine" if ahead else None
    if (
        made is not None
        and made.is_file()
        and kept(onnx_path, made, gpu.target, precision, package)
    ):
        say(f"{onnx_path.name}: engine built ahead of time for {gpu.target}")
        return _open(made, cache, trt, cuda)
    out = cache / f"{onnx_path.stem}.{graph_sha(onnx_path)[:12]}.engine"
    say(f"{onnx_path.name}: TensorRT engine for {gpu.name}, driver {gpu.driver}")
    built = build_engine(onnx_path, out, gpu, precision, say=say, package=package)
    say(f"{onnx_path.name}: {'kept engine' if built.reused else f'built in {built.seconds} s'}")
    return _open(built.path, cache, trt, cuda)


def _open(path: Path, cache: Path, trt: Any, cuda: Cuda) -> TensorRtSession:
    engine = load_engine(path, trt.__name__)
    return TensorRtSession(engine, trt, cuda, cache / f"{path.stem}.kernels")
