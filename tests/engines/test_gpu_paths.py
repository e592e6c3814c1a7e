"""The GPU code on doubles: a driver whose memory is the host's, a TensorRT that runs the ONNX.

What these tests cannot show, a GPU has to: `pytest -m gpu` (tests/export/test_gpu.py).
"""

import ctypes
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from engines import cuda, cuda_graph, tensorrt, tensorrt_session
from engines.bundle import load_bundle
from engines.cuda_graph import CudaGraphSession
from engines.errors import EngineError
from engines.session import Session, runtimes
from engines.tensorrt_session import TensorRtSession, open_tensorrt

SOURCE = Path(__file__).parent / "doubles" / "cuda.c"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Path of the compiled double."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (apt-get install build-essential) for the driver's double")
    out = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(out), str(SOURCE)], check=True)
    return str(out)


@pytest.fixture
def gpu(driver, monkeypatch):
    """A machine that has one GPU, as far as the code can tell."""
    monkeypatch.setattr(cuda, "LIBRARY", driver)
    lib = ctypes.CDLL(driver)
    lib.fake_devices(1)
    return lib


class Engine:
    """Runs an ONNX file; refuses what TensorRT refuses."""

    def __init__(self, path, profile):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        self.ports = {p.name: p for p in [*self.session.get_inputs(), *self.session.get_outputs()]}
        self.names, self.profile = list(self.ports), profile
        self.num_io_tensors = len(self.names)

    def get_tensor_name(self, index):
        return self.names[index]

    def get_tensor_mode(self, name):
        inputs = {p.name for p in self.session.get_inputs()}
        return f"TensorIOMode.{'INPUT' if name in inputs else 'OUTPUT'}"

    def get_tensor_location(self, name):
        return "TensorLocation.DEVICE"

    def get_tensor_dtype(self, name):
        kinds = {"float": "FLOAT", "uint8": "UINT8", "int64": "INT64", "bool": "BOOL"}
        return "DataType." + kinds[self.ports[name].type[7:-1]]

    def get_tensor_shape(self, name):
        return [d if isinstance(d, int) else -1 for d in self.ports[name].shape]

    def get_tensor_profile_shape(self, name, profile):
        low, high = self.profile
        return [[d if isinstance(d, int) else side for d in self.ports[name].shape]
                for side in (low, low, high)]  # fmt: skip

    def create_execution_context(self):
        return Context(self)


class Context:
    def __init__(self, engine):
        self.engine, self.shapes, self.at, self.answer = engine, {}, {}, {}

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, 0)
        fits = all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))
        self.shapes[name] = tuple(shape)
        return fits

    def set_tensor_address(self, name, address):
        self.at[name] = address
        return True

    def _array(self, name, shape):
        kind = tensorrt_session._TYPES[self.engine.get_tensor_dtype(name).split(".")[-1]]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        raw = (ctypes.c_char * size).from_address(self.at[name])
        return np.frombuffer(raw, kind).reshape(shape)

    def infer_shapes(self):
        inputs = [p.name for p in self.engine.session.get_inputs()]
        lacking = [n for n in inputs if n not in self.at]
        if not lacking:
            feeds = {n: self._array(n, self.shapes.get(n, ())) for n in inputs}
            outs = [o.name for o in self.engine.session.get_outputs()]
            self.answer = dict(zip(outs, self.engine.session.run(None, feeds), strict=True))
        return lacking

    def get_tensor_shape(self, name):
        return self.answer[name].shape

    def execute_async_v3(self, stream):
        for name, value in self.answer.items():
            self._array(name, value.shape)[...] = value
        return stream == 99


class Package:
    """The part of the TensorRT module a session reads (no RTX settings)."""

    __name__, __version__ = "tensorrt", "0"


def bound(session, count=2, groups=1, seed=0):
    """Bind a random memory; feeds for one tile."""
    rng = np.random.default_rng(seed)
    for name in "abc":
        shape = (groups, count, 225, 192)
        memory = rng.normal(size=shape).astype(np.float32)
        session.bind(f"memory_{name}", memory / np.linalg.norm(memory, axis=-1, keepdims=True))
    session.bind("anchors", rng.normal(size=(groups, 2, 192)).astype(np.float32))
    session.bind("few_shot", np.array(True))
    return session


def feeds(tiles=1):
    rng = np.random.default_rng(tiles)
    return {
        "tiles": rng.integers(0, 256, (tiles, 240, 240, 3), np.uint8),
        "group": np.zeros(tiles, np.int64),
    }


@pytest.fixture(scope="module")
def graph():
    return load_bundle("nano").file("detector.nearest.onnx")


def test_the_driver_says_which_gpu_this_is(gpu):
    here = cuda.gpu_here()
    assert (here.name, here.capability, here.target) == ("Double 4090", "89", "sm89")
    assert here.driver.endswith("CUDA 13.0")
    assert cuda.missing() == ""


def test_a_driver_without_a_gpu_and_no_driver_are_each_a_sentence(gpu, monkeypatch):
    gpu.fake_devices(0)
    assert "no GPU" in cuda.missing()
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-is-not-here.so")
    assert "no NVIDIA driver on this machine" in cuda.missing()
    for info in runtimes():
        if info.name in ("tensorrt", "tensorrt-rtx", "ort-cuda"):
            assert not info.available
            assert len(info.reason) > 10


def test_memory_of_the_device_is_copied_grown_and_given_back(gpu):
    device = cuda.Cuda()
    before = gpu.fake_blocks()
    buffer = cuda.Buffer(device)
    value = np.arange(12, dtype=np.float32).reshape(3, 4)
    address = buffer.put(value)
    assert buffer.fit(8) == address
    out = np.empty_like(value)
    device.download(out, address)
    device.synchronize()
    assert np.array_equal(out, value)
    buffer.fit(1 << 20)
    assert gpu.fake_blocks() == before + 1
    buffer.close()
    assert gpu.fake_blocks() == before
    with pytest.raises(EngineError, match=r"cuMemAlloc_v2 failed \(out of memory\)"):
        device.allocate(1 << 40)


def test_a_tensorrt_session_answers_as_onnx_runtime_does(gpu, graph):
    session = bound(TensorRtSession(Engine(graph, (1, 16)), Package(), cuda.Cuda()))
    plain = bound(Session(graph, threads=1))
    assert set(session.inputs) == set(plain.inputs)
    for tiles in (1, 3, 1):
        ours, theirs = session.run(feeds(tiles)), plain.run(feeds(tiles))
        assert ours.keys() == theirs.keys()
        assert all(np.abs(ours[n] - theirs[n]).max() < 1e-4 for n in ours)
    rebound, again = bound(session, count=5, seed=1), bound(plain, count=5, seed=1)
    assert np.allclose(rebound.run(feeds())["score"], again.run(feeds())["score"], atol=1e-5)


def test_a_tensorrt_session_from_several_threads_takes_turns(gpu, graph):
    session = bound(TensorRtSession(Engine(graph, (1, 16)), Package(), cuda.Cuda()))
    expected = {n: session.run(feeds(n))["score"] for n in (1, 2)}
    wrong = []

    def call(tiles):
        for _ in range(3):
            wrong.extend(
                [tiles] * (not np.array_equal(session.run(feeds(tiles))["score"], expected[tiles]))
            )

    threads = [threading.Thread(target=call, args=(n,)) for n in (1, 2, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_what_a_tensorrt_engine_cannot_take_is_a_sentence(gpu, graph):
    session = TensorRtSession(Engine(graph, (1, 16)), Package(), cuda.Cuda())
    with pytest.raises(EngineError, match="lacks inputs: memory_a"):
        session.run(feeds())
    with pytest.raises(EngineError, match=r"memory_a \(1, 17, 225, 192\) does not fit"):
        bound(session, count=17)


def test_an_engine_is_built_once_then_kept_and_one_made_ahead_of_time_is_preferred(
    gpu, graph, tmp_path, monkeypatch
):
    said, built = [], []

    def build(onnx_path, out, place, precision, say=None, package=None):
        reused = out.is_file()
        out.parent.mkdir(exist_ok=True)
        out.write_bytes(b"engine")
        built.append((out, place, precision, reused))
        return tensorrt.Built(out, {}, None, 1.5, reused)

    monkeypatch.setattr(tensorrt_session, "tensorrt", lambda name: Package())
    monkeypatch.setattr(tensorrt_session, "build_engine", build)
    monkeypatch.setattr(
        tensorrt_session, "load_engine", lambda path, package: Engine(graph, (1, 16))
    )
    monkeypatch.setattr(tensorrt_session, "kept", lambda *a: True)
    cache, ahead = tmp_path / "cache", tmp_path / "ahead"
    for _ in range(2):
        open_tensorrt(graph, "fp16", None, cache, ahead, said.append)
    assert [b[3] for b in built] == [False, True]
    assert built[0][1].name == "Double 4090"
    assert any("built in 1.5 s" in s for s in said)
    assert "kept engine" in said[-1]
    ahead.mkdir()
    (ahead / "detector.nearest.sm89.engine").write_bytes(b"engine")
    open_tensorrt(graph, "fp16", None, cache, ahead, said.append)
    assert len(built) == 2
    assert "ahead of time for sm89" in said[-1]


def test_buckets_of_a_cuda_graph_answer_as_the_plain_session(graph):
    session, plain = bound(CudaGraphSession(graph, "cpu")), bound(Session(graph, threads=1))
    for tiles in (1, 2, 1):
        ours, theirs = session.run(feeds(tiles)), plain.run(feeds(tiles))
        assert all(np.abs(ours[n] - theirs[n]).max() < 1e-4 for n in ours)
    bound(session, count=3, seed=2)
    bound(plain, count=3, seed=2)
    assert np.allclose(session.run(feeds())["map"], plain.run(feeds())["map"], atol=1e-5)
    bound(session)
    bound(plain)
    assert np.allclose(session.run(feeds())["map"], plain.run(feeds())["map"], atol=1e-5)


def test_more_references_than_a_bucket_takes_are_answered_without_capture(graph):
    session, plain = bound(CudaGraphSession(graph, "cpu")), Session(graph, threads=1)
    for count in (17, 64, 2, 17):
        bound(session, count=count, seed=count)
        bound(plain, count=count, seed=count)
        ours, theirs = session.run(feeds(2)), plain.run(feeds(2))
        assert all(np.abs(ours[n] - theirs[n]).max() < 1e-4 for n in ours)
    assert [n for _b, _g, n in session._buckets] == [2]


def test_answers_of_a_bucket_are_not_overwritten_by_the_next_run(graph):
    session = bound(CudaGraphSession(graph, "cpu"))
    first = session.run(feeds())["map"]
    kept = first.copy()
    other = feeds()
    session.run({**other, "tiles": 255 - other["tiles"]})
    assert np.array_equal(first, kept)


def test_at_most_a_few_buckets_are_held(graph, monkeypatch):
    monkeypatch.setattr(cuda_graph, "MAX_BUCKETS", 2)
    session = bound(CudaGraphSession(graph, "cpu"))
    for tiles in (1, 2, 3):
        session.run(feeds(tiles))
    assert [b[0] for b in session._buckets] == [2, 3]


def test_the_cuda_provider_captures_with_exact_products():
    (name, options), rest = cuda_graph.providers("cuda")
    assert name == "CUDAExecutionProvider"
    assert options == {"enable_cuda_graph": "1", "use_tf32": "0"}
    assert rest == "CPUExecutionProvider"
