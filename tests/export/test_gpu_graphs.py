"""Graphs for GPUs: no loop, and in a bucket nothing is left to compute about shapes."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from engines.bundle import load_bundle  # noqa: E402
from engines.cuda_graph import static_options  # noqa: E402
from engines.session import Session  # noqa: E402
from export import compose  # noqa: E402
from export.build_gpu import gpu_detector  # noqa: E402
from export.frames import draw  # noqa: E402
from export.gate_frames import to_tile  # noqa: E402
from export.graph import Graph, WeightStore  # noqa: E402
from export.model.config import ModelConfig  # noqa: E402
from export.quantise import calibration_feeds  # noqa: E402

pytestmark = pytest.mark.torch
MODES = ("position", "nearest", "bank")


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    weights = folder / "weights.safetensors"
    weights.write_bytes(load_bundle("nano").file("weights.safetensors").read_bytes())
    store = WeightStore(weights)
    return folder, store, ModelConfig.from_json(store.metadata["config"])


def written(folder, graph, name):
    path = folder / f"{name}.onnx"
    path.write_bytes(graph.model(name).SerializeToString())
    onnx.checker.check_model(str(path))
    return path


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_products_are_small_and_everything_else_is_fp32(nano, mode, half):
    _, store, config = nano
    model = gpu_detector(store, config, mode, half).model("d")
    kinds = [n.op_type for n in model.graph.node]
    assert not {"Loop", "Scan", "If"} & set(kinds)
    small = onnx.TensorProto.FLOAT16 if half == "fp16" else onnx.TensorProto.BFLOAT16
    cast = {
        n.output[0] for n in model.graph.node
        if n.op_type == "Cast" and n.attribute[0].i == small
    }  # fmt: skip
    users = {n.op_type for n in model.graph.node if set(n.input) & cast}
    assert users == {"MatMul"}
    exact = ("stem", "project", "units", "tddf", "memory", "head", "score")
    assert not [
        n.name for n in model.graph.node if n.name.startswith(exact) and n.output[0] in cast
    ]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bucket", [(1, 1, 4), (8, 8, 16)])
def test_a_bucket_is_static(nano, mode, bucket):
    """After ONNX Runtime's own optimiser: every tensor has one shape, no shape is computed."""
    folder, store, config = nano
    path = written(folder, gpu_detector(store, config, mode, "fp16"), f"d.{mode}")
    options = static_options(bucket)
    done = folder / f"optimised.{mode}.{bucket[0]}.onnx"
    options.optimized_model_filepath = str(done)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for port in [*session.get_inputs(), *session.get_outputs()]:
        assert all(isinstance(d, int) for d in port.shape), port.name
    left = {n.op_type for n in onnx.load(done, load_external_data=False).graph.node}
    assert not left & {"Shape", "Size", "NonZero", "Range", "Loop", "If", "Scan"}


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_the_emulated_twin_rounds(nano, half):
    """It must differ from FP32, or the optimiser removed the casts and the gate proves nothing."""
    folder, store, config = nano
    given = next(calibration_feeds([to_tile(draw(1, defective=True).image)], config))

    def tokens(graph, name):
        return Session(written(folder, graph, name), threads=1).run(given)["tokens_b"]

    plain = tokens(compose.detector(Graph(store), config, "bank", flat=True), "plain")
    twin = Graph(store, half=half, emulate=True)
    apart = tokens(compose.detector(twin, config, "bank", flat=True), half) - plain
    assert 1e-5 < np.sqrt(np.mean(np.sum(apart.astype(np.float64) ** 2, -1))) < 0.2
