"""Where a GPU is at hand: the gate of the CPU on ONNX Runtime CUDA, its CUDA graphs and TensorRT.

    pytest -m gpu tests/export/test_gpu.py

Nobody could run these where they were written: that machine has no GPU. What can be tested without
one is in tests/engines/test_gpu_paths.py and tests/export/test_{gpu_graphs,tensorrt}.py.
"""

import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from engines.bundle import EngineEntry, load_bundle  # noqa: E402
from engines.cuda import gpu_here, missing  # noqa: E402
from engines.detector import Detector, Memory  # noqa: E402
from engines.errors import EngineError  # noqa: E402
from engines.session import runtimes  # noqa: E402
from engines.text import TextEncoder  # noqa: E402
from export.build_gpu import gpu_detector  # noqa: E402
from export.gate import inspect  # noqa: E402
from export.gate_frames import drawn_sets  # noqa: E402
from export.gate_run import TorchRunner, judge  # noqa: E402
from export.graph import WeightStore  # noqa: E402
from export.model.config import ModelConfig  # noqa: E402
from export.model.weights import load_weights  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.gpu]
MODES = ("position", "nearest", "bank")
TENSORRT = ("tensorrt-rtx", "tensorrt")


def need(runtime):
    """Skip with the runtime's own reason."""
    info = next(r for r in runtimes() if r.name == runtime)
    if not info.available:
        pytest.skip(f"{runtime} cannot run here: {info.reason}")


@pytest.fixture(scope="module", autouse=True)
def card():
    reason = missing()
    if reason:
        pytest.skip(reason)
    return gpu_here()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The shipped nano with FP16 and BF16 detectors of every mode, as --gpu makes them."""
    shipped = load_bundle("nano")
    folder = tmp_path_factory.mktemp("gpu") / "nano"
    shutil.copytree(shipped.path, folder)
    store = WeightStore(folder / "weights.safetensors")
    config = ModelConfig.from_json(store.metadata["config"])
    files, engines = dict(shipped.manifest.files), list(shipped.manifest.engines)
    for mode in MODES:
        for half in ("fp16", "bf16"):
            graph = gpu_detector(store, config, mode, half)
            path = folder / f"detector.{mode}.{half}.onnx"
            path.write_bytes(graph.model(path.stem).SerializeToString())
            files[path.name] = ""
            engines.append(
                EngineEntry(
                    file=path.name,
                    sha256=path.name,
                    kind="detector",
                    mode=mode,
                    precision=half,
                    opset=20,
                    inputs=tuple(graph.ports[0]),
                    outputs=tuple(graph.ports[1]),
                )
            )
    manifest = shipped.manifest.model_copy(update={"files": files, "engines": tuple(engines)})
    return replace(shipped, path=folder, manifest=manifest)


@pytest.fixture(scope="module")
def model(bundle):
    return load_weights(bundle.file("weights.safetensors"))


@pytest.fixture(scope="module")
def anchors(bundle):
    return TextEncoder.open(bundle).anchors("object")[None]


@pytest.fixture(scope="module")
def gate(bundle, model, anchors):
    """(mode, precision, runtime) -> findings of the gate."""
    sets, kept = drawn_sets(), {}

    def run(mode, precision, runtime):
        if mode not in kept:
            runner = TorchRunner(model, anchors)
            runner.mode = mode
            kept[mode] = inspect(sets, runner.run, runner.bind, runner.run)
        entry = entry_of(bundle, mode, precision)
        _, findings = judge(bundle, entry, sets, anchors, kept[mode], runtime)
        return findings

    return run


def entry_of(bundle, mode, precision):
    return next(e for e in bundle.engines("detector", mode) if e.precision == precision)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Engines are built into a folder of the test."""
    monkeypatch.setenv("STATION_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("mode", MODES)
def test_onnx_runtime_cuda_passes_the_gate_of_the_cpu(gate, mode):
    need("ort-cuda")
    findings = gate(mode, "fp32", "ort-cuda")
    assert findings.passed, findings.failures


@pytest.mark.parametrize("mode", MODES)
def test_cuda_graphs_in_fp16_pass_the_gate(gate, mode):
    need("ort-cuda")
    findings = gate(mode, "fp16", "ort-cuda")
    assert findings.passed, findings.failures


def test_a_replayed_cuda_graph_answers_new_tiles_and_a_new_memory(bundle, anchors):
    """The captured graph reads fixed addresses: what is copied there must be what it sees."""
    need("ort-cuda")
    captured = Detector(bundle, entry_of(bundle, "nearest", "fp16"), "ort-cuda")
    plain = Detector(bundle, entry_of(bundle, "nearest", "fp32"), "ort-cuda")
    frames = [f.tile[None] for f in drawn_sets()[0].frames[:4]]
    for detector in (captured, plain):
        detector.bind(None, anchors)
    for count in (1, 2):
        for detector in (captured, plain):
            detector.bind(None, anchors)
            seen = [detector.run(f).tokens for f in frames[:count]]
            detector.bind(
                Memory(tuple(np.stack([t[s][0] for t in seen])[None] for s in range(3))), anchors
            )
        for frame in [*frames, *frames]:
            one, other = captured.run(frame), plain.run(frame)
            assert np.abs(one.map - other.map).max() < 0.05
    assert np.abs(captured.run(frames[0]).distances).max() == 0  # it is in memory: below the snap


@pytest.mark.parametrize("half", ["fp16", "bf16"])
@pytest.mark.parametrize("runtime", TENSORRT)
@pytest.mark.parametrize("mode", MODES)
def test_tensorrt_passes_the_gate(gate, cache, card, mode, runtime, half):
    need(runtime)
    if half == "bf16" and int(card.capability) < 80:
        pytest.skip(f"{card.name} has no BF16 (capability {card.capability})")
    findings = gate(mode, half, runtime)
    assert findings.passed, findings.failures


@pytest.mark.parametrize("runtime", TENSORRT)
def test_a_tensorrt_engine_is_built_once_and_takes_batches_and_a_bounded_memory(
    bundle, anchors, cache, runtime
):
    need(runtime)
    entry = entry_of(bundle, "bank", "fp16")
    Detector(bundle, entry, runtime)
    engines = {p: p.stat().st_mtime_ns for p in cache.rglob("*.engine")}
    assert engines
    detector = Detector(bundle, entry, runtime)
    assert {p: p.stat().st_mtime_ns for p in cache.rglob("*.engine")} == engines
    tiles = np.stack([f.tile for s in drawn_sets() for f in s.frames[:3]])
    detector.bind(None, anchors)
    one = np.concatenate([detector.run(t[None]).map for t in tiles])
    assert np.abs(detector.run(tiles).map - one).max() < 0.02
    tokens = detector.run(tiles[:1]).tokens
    many = Memory(tuple(np.repeat(t[None], 17, 1) for t in tokens))
    with pytest.raises(EngineError, match="does not fit the TensorRT engine"):
        detector.bind(many, anchors)
