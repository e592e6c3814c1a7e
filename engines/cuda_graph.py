"""ONNX Runtime CUDA with CUDA graphs: one captured graph per (batch, groups, references) bucket.

A captured graph replays fixed kernels on fixed addresses. So the graph is loop-free, each bucket is
a session whose dimensions are set (nothing is left to compute about shapes), inputs and outputs are
bound once to device memory, and new values are copied into the same place. The first run of a
bucket captures, all later ones replay. More references than 16 run the same graph uncaptured.
Remaining step without a GPU here: `pytest -m gpu` on one.
"""

import collections
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.session import Session

Array = NDArray[Any]
Bucket = tuple[int, int, int]
"""(B tiles, G memory groups, N references)."""
MAX_REFERENCES, MAX_BUCKETS = 16, 4
_TYPES = {
    "tensor(float)": np.float32, "tensor(uint8)": np.uint8,
    "tensor(int64)": np.int64, "tensor(bool)": np.bool_,
}  # fmt: skip


def providers(device: str) -> list[Any]:
    """Execution providers; "cpu" runs the same buckets without capture (tests, no GPU)."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    options = {"enable_cuda_graph": "1", "use_tf32": "0"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


def static_options(bucket: Bucket, threads: int = 1) -> Any:
    """Session options that set every dynamic dimension of a detector."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    for name, size in zip("BGN", bucket, strict=True):
        options.add_free_dimension_override_by_name(name, size)
    return options


class _Captured:
    """A session of one bucket with its device buffers."""

    def __init__(self, path: Path, bucket: Bucket, device: str) -> None:
        import onnxruntime as ort

        self._session = ort.InferenceSession(
            str(path), static_options(bucket), providers=providers(device)
        )
        self.version = -1
        """Which of the session's bound values it holds."""
        self._binding = self._session.io_binding()
        sizes = dict(zip("BGN", bucket, strict=True))

        def new(port: Any) -> Any:
            # by name: what runtimes infer for an output may still carry it
            shape = [sizes[d] if isinstance(d, str) else d for d in port.shape]
            kind = _TYPES[port.type]
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, device, 0)

        self._in = {port.name: new(port) for port in self._session.get_inputs()}
        self._out = {port.name: new(port) for port in self._session.get_outputs()}
        for name, value in self._in.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._out.items():
            self._binding.bind_ortvalue_output(name, value)

    def put(self, name: str, value: Array) -> None:
        self._in[name].update_inplace(value)

    def run(self) -> dict[str, Array]:
        self._session.run_with_iobinding(self._binding)
        # a copy: on the host `numpy()` may be a view of the buffer that the next run overwrites
        return {name: np.array(value.numpy()) for name, value in self._out.items()}


class CudaGraphSession:
    """The interface of `engines.session.Session` over captured buckets; calls take turns."""

    def __init__(self, path: Path, device: str = "cuda") -> None:
        import onnxruntime as ort

        self._path, self._device = path, device
        self._lock = threading.Lock()
        self._buckets: collections.OrderedDict[Bucket, _Captured] = collections.OrderedDict()
        self._bound: dict[str, Array] = {}
        self._version = 0
        # More references than a bucket takes: the same graph, whose products then grow with them
        # (.2 MB a reference and tap), without capture.
        self._plain: Session | None = None
        self._plain_runtime = "ort-cuda" if device == "cuda" else "ort-cpu"
        plain = ort.SessionOptions()
        plain.log_severity_level = 3
        plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            probe = ort.InferenceSession(str(path), plain, providers=["CPUExecutionProvider"])
        except Exception as error:
            first = str(error).splitlines()[0][:200]
            raise EngineError(f"{path} is not an engine this runtime can load: {first}") from error
        self.inputs = tuple(i.name for i in probe.get_inputs())
        self.outputs = tuple(o.name for o in probe.get_outputs())

    def bind(self, name: str, value: Array) -> None:
        """Set a constant input until it is bound again."""
        array = np.asarray(value, order="C")
        with self._lock:
            self._bound[name] = array
            self._version += 1
            fresh = [name]
            if self._plain is None:
                if not name.startswith("memory_") or array.shape[1] <= MAX_REFERENCES:
                    return
                self._plain = Session(self._path, self._plain_runtime)
                fresh = list(self._bound)
            for one in fresh:
                self._plain.bind(one, self._bound[one])

    def _shape(self) -> tuple[int, int]:
        groups, count = self._bound["memory_a"].shape[:2]
        return groups, count

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        """Run with the bound inputs and `feeds`; every output as an array of its own."""
        with self._lock:
            if self._plain is not None and self._shape()[1] > MAX_REFERENCES:
                return self._plain.run(feeds)
            captured = self._bucket((len(feeds["tiles"]), *self._shape()))
            for name, value in feeds.items():
                captured.put(name, np.asarray(value, order="C"))
            return captured.run()

    def _bucket(self, bucket: Bucket) -> _Captured:
        """The captured graph of a bucket; the least recently used one makes room."""
        if bucket not in self._buckets:
            while len(self._buckets) >= MAX_BUCKETS:
                self._buckets.popitem(last=False)
            self._buckets[bucket] = _Captured(self._path, bucket, self._device)
        self._buckets.move_to_end(bucket)
        captured = self._buckets[bucket]
        if captured.version != self._version:
            for name, value in self._bound.items():
                captured.put(name, value)
            captured.version = self._version
        return captured
