"""The same gate on a GPU: ONNX Runtime CUDA against PyTorch, and TensorRT engines that load."""

import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from engines.bundle import load_bundle  # noqa: E402
from engines.session import runtimes  # noqa: E402
from engines.text import TextEncoder  # noqa: E402
from export.build_tensorrt import build_all  # noqa: E402
from export.gate import inspect  # noqa: E402
from export.gate_frames import drawn_sets  # noqa: E402
from export.gate_run import TorchRunner, judge  # noqa: E402
from export.graph import WeightStore  # noqa: E402
from export.model.weights import load_weights  # noqa: E402
from export.tensorrt import load_engine  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.gpu]


@pytest.fixture(autouse=True)
def cuda():
    info = next(r for r in runtimes() if r.name == "ort-cuda")
    if not info.available:
        pytest.skip(f"ONNX Runtime CUDA cannot run here: {info.reason}")


@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
def test_cuda_passes_the_gate_of_the_cpu(mode):
    bundle = load_bundle("nano")
    entry = next(e for e in bundle.engines("detector", mode) if e.precision == "fp32")
    sets = drawn_sets()
    anchors = TextEncoder.open(bundle).anchors("object")[None]
    runner = TorchRunner(load_weights(bundle.file("weights.safetensors")), anchors)
    runner.mode = mode
    reference = inspect(sets, runner.run, runner.bind, runner.run)
    _, findings = judge(bundle, entry, sets, anchors, reference, "ort-cuda")
    assert findings.passed, findings.failures


def test_a_tensorrt_engine_built_here_loads_here(tmp_path):
    major, minor = torch.cuda.get_device_capability()
    bundle = load_bundle("nano")
    weights = bundle.file("weights.safetensors")
    model = load_weights(weights)
    store = WeightStore(weights)
    built = build_all(store, model.config, tmp_path, f"sm{major}{minor}", print, only=("encoder",))
    assert load_engine(built[0].path).num_io_tensors == 5
