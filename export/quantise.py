"""INT8 twins of the tower for CPUs: dynamic, and static QDQ calibrated with real frames.

Only the linear layers of the transformer are quantised. Attention's softmax, layer norms, the last
projection, text comparison and distances stay FP32, and so does the
convolutional stem: its ReLU6 depthwise layers lose too much per tensor and gain no time on a CPU
without VNNI (measured, see the model card). So do the first linear layers where a token would turn
away otherwise: what is lost there grows through all blocks (nano: the first block's attention alone
turned a token from cosine 1 to .72, any later layer none below .99).

Weights are S8 of 7 bits: U8S8 products of 8 bits can saturate in 16 bits on such CPUs, with 7 bits
they cannot; U8U8 products cannot either, but are 1.2 times slower there.
"""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import save_file

from engines.session import Session
from export.compose import encoder
from export.graph import Graph, WeightStore, captured
from export.model.config import PATCHES, ModelConfig

Scheme = Literal["int8-dynamic", "int8-static"]
SCHEMES: tuple[Scheme, ...] = ("int8-dynamic", "int8-static")
_SCOPES = ("block", "tap")
SPARED = (0, 2, 4, 8)
"""How many linear layers at the tower's start stay FP32: tried in turn until no token turns."""
WORST_TOKEN, LOOKED_AT = 0.97, 24
"""Least cosine of a token on so many calibration frames, for the tower to be good enough."""
SHARED_BYTES = 4096
"""INT8 tensors above this size move out of the graph into the shared file."""


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


def _quantise(
    source: Path, target: Path, scheme: Scheme, feeds: Iterator[dict[str, Any]], spared: int
) -> None:
    from onnxruntime import quantization as q

    class Feeds(q.CalibrationDataReader):
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    chosen, rest = linear_nodes(onnx.load(source))
    chosen, rest = chosen[spared:], [*chosen[:spared], *rest]
    common: dict[str, Any] = {
        "op_types_to_quantize": ["MatMul"],
        "nodes_to_quantize": chosen,
        "nodes_to_exclude": rest,
        "per_channel": True,
        "weight_type": q.QuantType.QInt8,
        "reduce_range": True,
    }
    # The quantiser advises pre-processing on every call; the graph has nothing to pre-process.
    logging.disable(logging.WARNING)
    try:
        if scheme == "int8-dynamic":
            extra = {"MatMulConstBOnly": True}
            q.quantize_dynamic(source, target, extra_options=extra, **common)
        else:
            q.quantize_static(
                source, target, Feeds(), quant_format=q.QuantFormat.QDQ,
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


def shared_weights(scheme: Scheme) -> str:
    """File of the INT8 weights: once per scheme, whatever the number of modes."""
    return f"weights.{scheme}.safetensors"


def _share_int8(model: onnx.ModelProto, path: Path) -> None:
    """Move the INT8 matrices into `path` and refer to them."""
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    large = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in model.graph.initializer
        if t.data_type in kinds and len(t.raw_data) > SHARED_BYTES
    }
    save_file(large, path)
    store = WeightStore(path)
    kept = [
        store.reference(t.name, t.name) if t.name in large else t for t in model.graph.initializer
    ]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


class _Judge:
    """How far the tokens of a quantised tower turn from those of the plain one."""

    def __init__(self, source: Path, tiles: Sequence[NDArray[np.uint8]]) -> None:
        self._tiles = [marred(tile)[None] for tile in tiles[:: max(1, len(tiles) // LOOKED_AT)]]
        self._plain = self._tokens(source)

    def _tokens(self, path: Path) -> list[NDArray[Any]]:
        session = Session(path)
        answers = [session.run({"tiles": tile}) for tile in self._tiles]
        return [np.concatenate([a[name] for a in answers]) for name in session.outputs]

    def worst(self, path: Path) -> float:
        """Least cosine of any token."""
        pairs = zip(self._plain, self._tokens(path), strict=True)
        return float(np.min([cosines(a, b).min(initial=1.0) for a, b in pairs]))


def marred(tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A tile with squares of its negative, black and white: odd patches turn tokens first."""
    made = tile.copy()
    made[40:80, 40:80] = 255 - made[40:80, 40:80]
    made[120:160, 60:100] = 0
    made[100:140, 160:200] = 255
    return made


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Cosine per token (last axis), NaN where one is no number; zero on both sides is left out."""
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    both = ~(np.maximum(np.abs(a).max(-1), np.abs(b).max(-1)) <= 1e-6)
    return np.asarray((a * b).sum(-1)[both] / np.maximum(lengths[both], 1e-12))


def quantised_encoder(
    store: WeightStore, scheme: Scheme, tiles: Sequence[NDArray[np.uint8]], config: ModelConfig
) -> tuple[onnx.ModelProto, int]:
    """INT8 twin of the encoder, made once and grafted into the detector of each mode.

    Also how many of its first linear layers stayed FP32. Its INT8 weights lie beside the weights
    file, in `shared_weights(scheme)`; what stays FP32 still refers to the weights file itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(encoder(Graph(store, inline=True), config).model("encoder"), source)
        judge = _Judge(source, tiles)
        for spared in SPARED:
            _quantise(source, target, scheme, iter([{"tiles": t[None]} for t in tiles]), spared)
            if judge.worst(target) >= WORST_TOKEN:
                break
        model = onnx.load(target)
    model = refer_weights(model, store)
    _share_int8(model, store.path.with_name(shared_weights(scheme)))
    return model, spared
