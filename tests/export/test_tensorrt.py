"""TensorRT engines for SM89, built on a machine without a GPU, each checked before its build."""

import json
import shutil
from dataclasses import replace

import onnx
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")
pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed (extra 'gpu')")

from engines import cuda, tensorrt  # noqa: E402
from engines.errors import EngineError  # noqa: E402
from export import compose  # noqa: E402
from export.build_gpu import build_ahead, gpu_detector  # noqa: E402
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
    first = build_ahead(store, preset("nano"), folder / "c", "sm89", said.append, only=NAMES)
    assert [b.path.name for b in first] == [f"{n}.fp16.sm89.engine" for n in NAMES]
    assert all(b.path.stat().st_size > 10_000 for b in first)
    assert any("steps" in s for s in said)
    assert "GPU" in said[-1]
    encoder, detector = first[0].report, first[3].report
    # 4 blocks x 2, ln_pre, ln_post twice; 4 softmaxes of the stream and 3 of the taps
    assert encoder.norms == detector.norms == 11
    assert encoder.softmaxes == detector.softmaxes == 7
    assert encoder.half_products > 30  # 4 blocks x 6, 3 taps x 3; the stem stays FP32
    assert first[2].report.half_products == 0
    assert detector.inputs["tiles"].startswith("UINT8(-1, 240, 240, 3)")
    again = build_ahead(store, preset("nano"), folder / "c", "sm89", said.append, only=NAMES)
    assert all(b.reused for b in again)
    assert [b.key for b in again] == [b.key for b in first]


def test_the_bundles_own_graph_builds_in_bf16_and_its_key_says_what_must_be_equal(nano):
    """Weights stay outside the graph: what a station builds from is the bundle's own file."""
    folder, store = nano
    path = folder / "detector.bank.bf16.onnx"
    model = gpu_detector(store, preset("nano"), "bank", "bf16").model("detector")
    path.write_bytes(model.SerializeToString())
    assert path.stat().st_size < 500_000
    assert "Loop" not in {n.op_type for n in model.graph.node}
    (built,) = build_ahead(
        store, preset("nano"), folder / "b", "sm89", lambda s: None, ("detector.bank",), "bf16"
    )
    assert built.report.norms == 11
    assert built.report.half_products > 30
    assert set(built.key) == {"onnx", "tensorrt", "gpu", "precision", "profile"}
    assert built.key["gpu"] == {"target": "sm89"}
    low, _, high = built.key["profile"]["memory_a"]
    assert (low[1], high[1]) == (1, 16)
    assert tensorrt.kept(path, built.path, "sm89", "bf16")
    assert not tensorrt.kept(path, built.path, "sm89", "fp16")
    assert not tensorrt.kept(path, built.path, "sm120", "bf16")


@pytest.mark.parametrize("mode", ["position", "bank"])
@pytest.mark.slow
def test_the_other_modes_build_too(nano, mode):
    folder, store = nano
    names = (f"msspmm.{mode}", f"detector.{mode}")
    built = build_ahead(store, preset("nano"), folder / "o", "sm89", lambda s: None, only=names)
    assert len(built) == 2


@pytest.mark.slow
@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_paper_builds_for_sm89(tmp_path, half):
    store = stored(tmp_path, preset("paper"))
    names = ("encoder", "detector.nearest")
    built = build_ahead(store, preset("paper"), tmp_path / "c", "sm89", lambda s: None, names, half)
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
    with pytest.raises(EngineError, match=r"unknown target 'sm1': .* builds for .*sm89"):
        tensorrt.build_engine(tmp_path / "x.onnx", tmp_path / "x.engine", "sm1")


GPUS = (
    cuda.Gpu("NVIDIA GeForce RTX 4090", "89", "580.65.06, CUDA 13.0"),
    cuda.Gpu("NVIDIA L4", "89", "580.65.06, CUDA 13.0"),
    cuda.Gpu("NVIDIA L4", "89", "575.57.08, CUDA 12.9"),
    "sm89",
    "sm120",
)


def test_another_graph_weight_gpu_driver_target_precision_or_profile_is_another_key(nano, tmp_path):
    folder, store = nano
    trt = tensorrt.tensorrt()
    keys = []
    shutil.copy(folder / "weights.safetensors", tmp_path)
    for trained in (False, True):
        path = tmp_path / f"{trained}.onnx"
        config = replace(preset("nano"), tddf_trained=trained)
        graph = compose.focuser(Graph(store, half="fp16"), config)
        path.write_bytes(graph.model("tddf").SerializeToString())
        _, network = tensorrt._parse(trt, tensorrt._Log(trt), path)
        for place in GPUS:
            for batch in (1, 8):
                for precision in ("fp16", "bf16"):
                    shapes = tensorrt.profile_of(network, batch=batch)
                    keys.append(tensorrt.engine_key(path, place, precision, shapes, trt))
    assert len({json.dumps(k, sort_keys=True) for k in keys}) == len(keys) == 40
    raw = bytearray((tmp_path / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(raw)
    assert tensorrt.graph_sha(path) != keys[-1]["onnx"]


def test_an_engine_without_its_key_or_cut_short_is_built_again(nano):
    folder, store = nano
    (built,) = build_ahead(
        store, preset("nano"), folder / "k", "sm89", lambda s: None, only=("tddf",)
    )
    source = folder / "k" / "tddf.fp16.onnx"
    assert tensorrt.kept(source, built.path, "sm89", "fp16")
    whole = built.path.read_bytes()
    built.path.write_bytes(whole[:-1])
    assert not tensorrt.kept(source, built.path, "sm89", "fp16")
    built.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not tensorrt.kept(source, built.path, "sm89", "fp16")
    built.path.write_bytes(whole)
    assert tensorrt.kept(source, built.path, "sm89", "fp16")
    built.path.with_suffix(".key.json").write_text("{")
    assert not tensorrt.kept(source, built.path, "sm89", "fp16")


def test_loading_without_a_gpu_says_so_in_one_sentence(tmp_path):
    if not cuda.missing():
        pytest.skip("there is a GPU here")
    engine = tmp_path / "detector.engine"
    engine.write_bytes(b"x")
    with pytest.raises(EngineError, match="can be built but not loaded here: no NVIDIA") as error:
        tensorrt.load_engine(engine)
    assert "\n" not in str(error.value)
