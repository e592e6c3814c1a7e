"""TensorRT engines for SM89, built on a machine without a GPU, each checked before its build."""

from dataclasses import replace

import onnx
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")
pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed (extra 'gpu')")

from engines.errors import EngineError  # noqa: E402
from export import compose, tensorrt  # noqa: E402
from export.build_tensorrt import build_all  # noqa: E402
from export.graph import Graph, WeightStore  # noqa: E402
from export.model import SpgddGpt, preset  # noqa: E402
from export.model.weights import save_weights  # noqa: E402

pytestmark = pytest.mark.torch
NAMES = ("encoder", "tddf", "msspmm.nearest", "detector.nearest")


def stored(folder, config):
    torch.manual_seed(0)
    save_weights(SpgddGpt(config), folder / "weights.safetensors")
    return WeightStore(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trt")
    return folder, stored(folder, preset("nano"))


def test_nano_builds_for_sm89_with_progress_and_is_then_reused(nano):
    folder, store = nano
    said: list[str] = []
    first = build_all(store, preset("nano"), folder / "c", "sm89", said.append, only=NAMES)
    assert [b.path.name for b in first] == [f"{n}.sm89.engine" for n in NAMES]
    assert all(b.path.stat().st_size > 10_000 for b in first)
    assert any("steps" in s for s in said)
    assert "GPU" in said[-1]
    encoder, detector = first[0].report, first[3].report
    # 4 blocks x 2, ln_pre, ln_post twice; 4 softmaxes of the stream and 3 of the taps
    assert encoder.norms == detector.norms == 11
    assert encoder.softmaxes == detector.softmaxes == 7
    assert encoder.half_products > 50
    assert first[2].report.half_products == 0
    assert detector.inputs["tiles"].startswith("UINT8(-1, 240, 240, 3)")
    again = build_all(store, preset("nano"), folder / "c", "sm89", said.append, only=NAMES)
    assert all(b.reused for b in again)
    assert [b.key for b in again] == [b.key for b in first]


@pytest.mark.parametrize("mode", ["position", "bank"])
@pytest.mark.slow
def test_the_other_modes_build_too(nano, mode):
    folder, store = nano
    names = (f"msspmm.{mode}", f"detector.{mode}")
    built = build_all(store, preset("nano"), folder / "o", "sm89", lambda s: None, only=names)
    assert len(built) == 2


@pytest.mark.slow
def test_paper_builds_for_sm89(tmp_path):
    store = stored(tmp_path, preset("paper"))
    names = ("encoder", "detector.nearest")
    built = build_all(store, preset("paper"), tmp_path / "c", "sm89", lambda s: None, only=names)
    assert [b.report.norms for b in built] == [27, 27]
    assert [b.report.softmaxes for b in built] == [15, 15]


def test_a_half_precision_norm_is_refused_before_the_build(tmp_path):
    half = onnx.TensorProto.FLOAT16
    info = onnx.helper.make_tensor_value_info
    ones = onnx.numpy_helper.from_array(torch.ones(8).half().numpy(), "w")
    node = onnx.helper.make_node("LayerNormalization", ["x", "w"], ["y"], name="block1/norm")
    graph = onnx.helper.make_graph(
        [node], "bad", [info("x", half, ["B", 8])], [info("y", half, ["B", 8])], [ones]
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(EngineError, match="it must be FP32"):
        tensorrt.inspect_network(tmp_path / "b.onnx")


def test_what_cannot_be_parsed_or_named_is_one_sentence(tmp_path, nano):
    (tmp_path / "x.onnx").write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"x\.onnx is not for TensorRT") as error:
        tensorrt.inspect_network(tmp_path / "x.onnx")
    assert "\n" not in str(error.value)
    with pytest.raises(EngineError, match="unknown target 'sm1'"):
        tensorrt.build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", "sm1")


def test_another_graph_target_or_profile_is_another_key(nano, tmp_path):
    _, store = nano
    trt = tensorrt.tensorrt()
    keys = set()
    for tau in (10.0, 20.0):
        config = replace(preset("nano"), tddf_trained=tau > 15)
        path = tmp_path / f"{tau}.onnx"
        model = compose.focuser(Graph(store, inline=True, half=True), config).model("tddf")
        onnx.save(model, path)
        for target in ("sm89", "sm90"):
            for batch in (1, 8):
                shapes = tensorrt.profile_of(model, batch=batch)
                keys.add(tensorrt.engine_key(path, target, shapes, trt))
    assert len(keys) == 8


def test_loading_without_a_gpu_says_so_in_one_sentence(tmp_path):
    from pathlib import Path

    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    engine = tmp_path / "detector.engine"
    engine.write_bytes(b"x")
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        tensorrt.load_engine(engine)
