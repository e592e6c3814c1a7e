"""INT8 twins of a detector for CPUs: dynamic, and static QDQ calibrated with real frames.

Only the linear layers of the transformer are quantised. Attention's softmax, layer norms, the last
projection, text comparison and distances stay FP32 (DESIGN.md, The gate), and so does the
convolutional stem: its ReLU6 depthwise layers lose too much per tensor and gain no time on a CPU
without VNNI (measured, see the model card). Weights are U8 with a zero point: U8S8 products can
saturate in 16 bits on such CPUs, U8U8 cannot, at the same speed here.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from export.graph import Graph, WeightStore, captured
from export.model.config import PATCHES, ModelConfig

Scheme = Literal["int8-dynamic", "int8-static"]
SCHEMES: tuple[Scheme, ...] = ("int8-dynamic", "int8-static")
_SCOPES = ("block", "tap")


def linear_nodes(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """(to quantise, to leave): MatMul and Conv nodes by name."""
    constant = {t.name for t in model.graph.initializer}
    chosen: list[str] = []
    rest: list[str] = []
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Conv"):
            continue
        inside = node.name.startswith(_SCOPES) and node.op_type == "MatMul"
        (chosen if inside and node.input[1] in constant else rest).append(node.name)
    return chosen, rest


def calibration_feeds(
    tiles: Sequence[NDArray[np.uint8]], config: ModelConfig
) -> Iterator[dict[str, Any]]:
    """Detector inputs (zero-shot) for each calibration tile."""
    fixed: dict[str, Any] = {
        "group": np.zeros(1, np.int64),
        "few_shot": np.array(False),
        "anchors": np.ones((1, 2, config.embed_dim), np.float32),
    }
    for name, dim in zip("abc", config.tap_dims, strict=True):
        fixed[f"memory_{name}"] = np.zeros((1, 1, PATCHES, dim), np.float32)
    return ({"tiles": tile[None], **fixed} for tile in tiles)


def _quantise(source: Path, target: Path, scheme: Scheme, feeds: Iterator[dict[str, Any]]) -> None:
    from onnxruntime import quantization as q

    class Feeds(q.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            given = next(feeds, None)
            return given and {k: v for k, v in given.items() if k in wanted}

    plain = onnx.load(source)
    wanted = {i.name for i in plain.graph.input}  # an encoder alone takes only the tiles
    chosen, rest = linear_nodes(plain)
    common: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul"],
        "nodes_to_quantize": chosen,
        "nodes_to_exclude": rest,
        "per_channel": True,
        "weight_type": q.QuantType.QUInt8,
    }
    # The quantiser advises pre-processing on every call; the graph has nothing to pre-process.
    logging.disable(logging.WARNING)
    try:
        if scheme == "int8-dynamic":
            extra = {"MatMulConstBOnly": True}
            q.quantize_dynamic(source, target, extra_options=extra, **common)
        else:
            common["weight_type"] = q.QuantType.QInt8
            q.quantize_static(
                source, target, Feeds(), quant_format=q.QuantFormat.QDQ, reduce_range=True,
                activation_type=q.QuantType.QUInt8, **common,
            )  # fmt: skip
    finally:
        logging.disable(logging.NOTSET)


def sort_nodes(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Topological order, stable, that counts what loop bodies read from outside.

    The quantiser sorts too but overlooks captured tensors.
    """
    made = {o for n in nodes for o in n.output}
    done: set[str] = set()
    waiting, ordered = list(nodes), []
    while waiting:
        later = []
        for node in waiting:
            needs = (set(node.input) | captured([node])) & made
            if needs <= done:
                ordered.append(node)
                done.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError("the graph has a cycle")
        waiting = later
    return ordered


def refer_weights(model: onnx.ModelProto, store: WeightStore) -> onnx.ModelProto:
    """Replace the f32 weights that stayed by references into the weights file."""
    g = Graph(store)
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name in store.tensors and tensor.data_type == onnx.TensorProto.FLOAT:
            g.weight(tensor.name)
        else:
            kept.append(tensor)
    nodes = sort_nodes([*g.nodes, *model.graph.node])
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend([*g.initializers.values(), *kept])
    model.graph.node.extend(nodes)
    return model


def quantised(
    graph: Graph, store: WeightStore, scheme: Scheme, tiles: Sequence[NDArray[np.uint8]],
    config: ModelConfig, metadata: dict[str, str],
) -> onnx.ModelProto:  # fmt: skip
    """INT8 twin of an inline graph; what stays FP32 still refers to the weights file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(graph.model("detector", metadata), source)
        _quantise(source, target, scheme, calibration_feeds(tiles, config))
        model = onnx.load(target)
    onnx.helper.set_model_props(model, metadata)
    model.producer_name, model.producer_version = "inspection-station", ""
    return refer_weights(model, store)
