"""ONNX of TDDF, MSSPMM, head, score and prefix (mirror of export.model.{tddf,memory,adapter})."""

import numpy as np
import onnx
from onnx import helper

from export.graph import Graph
from export.model.config import GRID, PATCHES, ModelConfig
from export.model.memory import BLOCK, SNAP, Mode
from export.parts_vision import linear

SIZE = 240


def unit(g: Graph, x: str) -> str:
    """Rows of unit length."""
    norm = g.op("Sqrt", sum_square(g, x, -1))
    return g.op("Div", x, g.op("Max", norm, g.const(1e-12)))


def sum_square(g: Graph, x: str, axis: int, *, keepdims: int = 1) -> str:
    """Sum of squares over one axis, the sum apart.

    ONNX Runtime adds up ReduceL2 and ReduceSumSquare one number after the other, which leaves
    1e-6 of the length of 192 numbers; its ReduceSum adds eight at a time, and is faster.
    """
    return g.op("ReduceSum", g.op("Mul", x, x), g.const([axis]), keepdims=keepdims)


def tddf(g: Graph, taps: tuple[str, str, str], anchors: str, config: ModelConfig) -> str:
    """Taps (last one may already be unit) and unit anchors (B,2,E) -> P (B,225,3)."""
    g.scope("tddf")
    across = g.op("Transpose", anchors, perm=[0, 2, 1])

    def delta(unit_tokens: str) -> str:
        cos = g.op("MatMul", unit_tokens, across)
        squared = g.op("Sub", g.const(2.0), g.op("Mul", cos, g.const(2.0)))
        d = g.op("Sqrt", g.op("Max", squared, g.const(0.0)))
        normal, abnormal = g.split(d, [1, 1], 2)
        return g.op("Sub", normal, abnormal)

    last = delta(unit(g, taps[2]))
    if config.tddf_trained:
        first = delta(unit(g, linear(g, taps[0], "tddf.linear_a")))
        second = delta(unit(g, linear(g, taps[1], "tddf.linear_b")))
        deltas = g.op("Concat", first, second, last, axis=2)
    else:
        deltas = g.op("Concat", last, last, last, axis=2)
    return g.op("Sigmoid", g.op("Mul", deltas, g.weight("tddf.tau")))


class _Query:
    """Unit tokens (B,225,D) of one tap: (B,1,225,D) to subtract, (B,D,225) to multiply with."""

    def __init__(self, g: Graph, tokens: str, mode: Mode) -> None:
        self.tokens = g.op("Unsqueeze", tokens, g.const([1]))
        self.across = "" if mode == "position" else g.op("Transpose", tokens, perm=[0, 2, 1])


def _block_distances(
    g: Graph, query: list[_Query], memory: list[str], start: str, mode: Mode, context: "_Match"
) -> str:
    """Distances (B,n,225,3) of one block of references; in `bank` (B,1,225,3) of the nearest."""
    stop = g.op("Min", g.op("Add", start, g.const([context.block])), context.count)
    step = g.op("Range", *(g.op("Squeeze", s) for s in (start, stop)), g.const(1))
    rows = g.op("Add", context.base, step)  # (B,n) rows of the (G*N,225,D) memory
    squared = [
        _squared(g, q, g.op("Gather", m, rows, axis=0), mode)
        for q, m in zip(query, memory, strict=True)
    ]
    return _distances(g, squared)


def _distances(g: Graph, squared: list[str]) -> str:
    """Three squared distances (B,n,225) -> distances (B,n,225,3); below the snap they are 0."""
    d = g.op("Concat", *(g.op("Unsqueeze", s, g.const([3])) for s in squared), axis=3)
    snapped = g.op("Where", g.op("Less", d, g.const(SNAP)), g.const(0.0), d)
    return g.op("Sqrt", snapped)


def _squared(g: Graph, query: _Query, block: str, mode: Mode) -> str:
    """Squared distances of the nearest patches: (B,n,225), in `bank` (B,1,225) over the block.

    The product only chooses the neighbour; its distance is taken from the difference. Cosines near
    1 summed in FP32 leave 1.6e-6 of 2-2cos, the difference .8e-6 at most (export.gate_distance).
    """
    if mode == "position":
        near = block
    else:
        shape = g.op("Concat", g.const([0, -1]), g.op("Shape", block, start=3), axis=0)
        flat = g.op("Reshape", block, shape)
        cos = g.op("MatMul", flat, query.across)  # (B, n*225, 225)
        if mode == "bank":
            cos, block = (g.op("Unsqueeze", x, g.const([1])) for x in (cos, flat))
        else:
            cos = g.op("Reshape", cos, g.const([0, -1, PATCHES, PATCHES]))
        index = g.op("ArgMax", cos, axis=2, keepdims=0, select_last_index=0)
        near = g.op("GatherND", block, g.op("Unsqueeze", index, g.const([3])), batch_dims=2)
    return sum_square(g, g.op("Sub", near, query.tokens), 3, keepdims=0)


class _Match:
    """What the loop body reads from outside."""

    def __init__(self, base: str, count: str, block: int) -> None:
        self.base, self.count, self.block = base, count, block


def _step(g: Graph, d: str, best: str, total: str, mode: Mode) -> tuple[str, str]:
    """Running minimum: the better of the block's best reference and the best so far."""
    if mode == "bank":
        return g.op("Min", best, g.op("ReduceMin", d, g.const([1]), keepdims=0)), total
    sums = g.op("ReduceSum", d, g.const([2, 3]), keepdims=0)  # (B,n)
    index = g.op("ArgMin", sums, axis=1, keepdims=1, select_last_index=0)
    least = g.op("GatherElements", sums, index, axis=1)  # (B,1)
    chosen = g.op("GatherND", d, index, batch_dims=1)  # (B,225,3)
    better = g.op("Less", least, total)
    wide = g.op("Unsqueeze", better, g.const([2]))
    return g.op("Where", wide, chosen, best), g.op("Where", better, least, total)


def match(
    g: Graph,
    tokens: list[str],
    memory: list[str],
    group: str,
    few_shot: str,
    mode: Mode,
    block: int = BLOCK,
) -> str:
    """Unit tokens 3 x (B,225,D), unit memory 3 x (G,N,225,D) -> distances (B,225,3).

    A loop over blocks of references with a running minimum: no (N*225)x225 array exists, time is
    linear in N. Zero-shot runs no step: distance 2, so AM = 1.
    """
    g.scope("memory")
    count = g.op("Shape", memory[0], start=1, end=2)
    base = g.op("Unsqueeze", g.op("Mul", group, count), g.const([1]))
    flat = [
        g.op("Reshape", m, g.op("Concat", g.const([-1]), g.op("Shape", m, start=2), axis=0))
        for m in memory
    ]
    query = [_Query(g, t, mode) for t in tokens]
    blocks = g.op("Div", g.op("Add", count, g.const([block - 1])), g.const([block]))
    trips = g.op("Mul", blocks, g.op("Cast", few_shot, to=7))
    batch = g.op("Shape", tokens[0], start=0, end=1)
    shape = g.op("Concat", batch, g.const([PATCHES, 3]), axis=0)
    best = g.op("Expand", g.const(np.full((1, 1, 1), 2, np.float32)), shape)
    shape = g.op("Concat", batch, g.const([1]), axis=0)
    total = g.op("Expand", g.const(np.full((1, 1), np.inf, np.float32)), shape)
    context = _Match(base, count, block)
    body = _loop_body(g, query, flat, mode, context)
    names = [g.fresh("best"), g.fresh("total")]
    always = g.const(np.array(True))
    inputs = [g.op("Squeeze", trips), always, best, total]
    g.nodes.append(helper.make_node("Loop", inputs, names, name=names[0], body=body))
    return names[0]


def match_flat(
    g: Graph, tokens: list[str], memory: list[str], group: str, few_shot: str, mode: Mode
) -> str:
    """`match` without a loop, for small N (at most 16): what CUDA graphs and TensorRT want.

    All references at once, so the products of one tile take N*225*225*4 bytes (3.2 MB at N=16).
    """
    g.scope("memory")
    query = [_Query(g, t, mode) for t in tokens]
    squared = [
        _squared(g, q, g.op("Gather", m, group, axis=0), mode)
        for q, m in zip(query, memory, strict=True)
    ]
    d = _distances(g, squared)
    if mode == "bank":
        best = g.op("ReduceMin", d, g.const([1]), keepdims=0)
    else:
        sums = g.op("ReduceSum", d, g.const([2, 3]), keepdims=1)  # (B,n,1,1)
        index = g.op("ArgMin", sums, axis=1, keepdims=1, select_last_index=0)
        batch = g.op("Shape", d, start=0, end=1)
        shape = g.op("Concat", batch, g.const([1, PATCHES, 3]), axis=0)
        best = g.op("GatherElements", d, g.op("Expand", index, shape), axis=1)
        best = g.op("Squeeze", best, g.const([1]))
    return g.op("Where", few_shot, best, g.const(2.0))


def _loop_body(
    g: Graph, query: list[_Query], memory: list[str], mode: Mode, context: _Match
) -> onnx.GraphProto:
    outer, g.nodes = g.nodes, []
    trip, cond, best, total = (g.fresh(n) for n in ("trip", "cond", "best_in", "total_in"))
    start = g.op("Unsqueeze", g.op("Mul", trip, g.const(context.block)), g.const([0]))
    d = _block_distances(g, query, memory, start, mode, context)
    new = _step(g, d, best, total, mode)
    outs = [g.fresh("cond_out"), g.fresh("best_out"), g.fresh("total_out")]
    for source, out in zip((cond, *new), outs, strict=True):
        g.op("Identity", source, out=out)
    nodes, g.nodes = g.nodes, outer
    info = helper.make_tensor_value_info
    f32, i64, bit = 1, 7, 9
    inputs = [info(trip, i64, []), info(cond, bit, [])]
    inputs += [info(best, f32, None), info(total, f32, None)]
    outputs = [info(outs[0], bit, []), info(outs[1], f32, None), info(outs[2], f32, None)]
    return helper.make_graph(nodes, "references", inputs, outputs)


def upsample_matrix() -> np.ndarray:
    """(240,15): bilinear weights, align_corners=False, edges clamped."""
    centre = (np.arange(SIZE) + 0.5) * GRID / SIZE - 0.5
    centre = np.maximum(centre, 0)
    low = np.minimum(centre.astype(int), GRID - 1)
    high = np.minimum(low + 1, GRID - 1)
    share = centre - low
    matrix = np.zeros((SIZE, GRID))
    matrix[np.arange(SIZE), low] += 1 - share
    matrix[np.arange(SIZE), high] += share
    return matrix.astype(np.float32)


def upsample(g: Graph, grid: str) -> str:
    """(B,225,1) -> (B,240,240): two small matrix products, the same on every runtime."""
    up = upsample_matrix()
    x = g.op("Reshape", grid, g.const([0, GRID, GRID]))
    x = g.op("MatMul", g.const(up), x)
    return g.op("MatMul", x, g.const(np.ascontiguousarray(up.T)))


def trust_of(g: Graph, anchors: str) -> str:
    """Anchors (B,2,E) of any length -> (B,1,1): the abnormal one's length, at most 1."""
    _, abnormal = g.split(anchors, [1, 1], 1)
    square = g.op("ReduceSum", g.op("Mul", abnormal, abnormal), g.const([2]), keepdims=1)
    return g.op("Min", g.op("Sqrt", square), g.const(1.0))


def doubted(g: Graph, p: str, anchors: str) -> str:
    """P (B,225,3), the odds of taps b and c times the length of the anchors (B,2,E)."""
    some = g.op("Sub", g.const(1.0), trust_of(g, anchors))
    doubt = g.op("Mul", some, g.const(np.array([0, 1, 1], np.float32)))
    left = g.op("Mul", p, g.op("Sub", g.const(1.0), doubt))
    return g.op("Div", left, g.op("Sub", g.const(1.0), g.op("Mul", p, doubt)))


def head(g: Graph, f_out: str, p: str, am: str, anchors: str, config: ModelConfig) -> str:
    """Anomaly map (B,240,240). Softmax of two logits = sigmoid of their difference.

    anchors (B,2,E) as they came in: their length is the trust in P.
    """
    g.scope("head")
    if config.head == "mean":
        return upsample(g, g.op("ReduceMean", f_out, g.const([2]), keepdims=1))
    x = f_out
    if config.head != "paper_literal":
        x = g.op("Concat", f_out, doubted(g, p, anchors), am, axis=2)
    if config.head == "mlp":
        x = g.op("Relu", linear(g, x, "head.hidden"))
    normal, abnormal = g.split(linear(g, x, "head.out"), [1, 1], 2)
    return g.op("Sigmoid", upsample(g, g.op("Sub", abnormal, normal)))


def score(g: Graph, maps: str, cls: str, anchors: str) -> str:
    """Unit cls (B,E), unit anchors (B,2,E), map -> (B,)."""
    g.scope("score")
    cos = g.op("MatMul", anchors, g.op("Unsqueeze", cls, g.const([2])))  # (B,2,1)
    normal, abnormal = g.split(cos, [1, 1], 1)
    logit = g.op("Mul", g.op("Sub", abnormal, normal), g.weight("score.scale"))
    s_cls = g.op("Sigmoid", g.op("Reshape", logit, g.const([-1])))
    peak = g.op("ReduceMax", maps, g.const([1, 2]), keepdims=0)
    weight = g.weight("score.weight")
    rest = g.op("Sub", g.const(1.0), weight)
    inverse = g.op("Add", g.op("Div", weight, s_cls), g.op("Div", rest, peak))
    positive = [g.op("Greater", x, g.const(0.0)) for x in (s_cls, peak)]
    both = g.op("And", *positive)
    return g.op("Where", both, g.op("Reciprocal", inverse), g.const(0.0))


def prefix(g: Graph, cls: str, anchors: str, f_out: str) -> str:
    """cls (B,E), anchors (B,2,E), f_out (B,15,15,3) -> (B,21,H)."""
    g.scope("prefix")
    grid = g.op("Transpose", f_out, perm=[0, 3, 1, 2])
    cells = g.op("MaxPool", grid, kernel_shape=[5, 5], strides=[5, 5])
    cells = g.op("Transpose", g.op("Reshape", cells, g.const([0, 3, 9])), perm=[0, 2, 1])
    image = g.op("Unsqueeze", linear(g, cls, "prefix.image"), g.const([1]))
    learned = g.weight("prefix.learned")
    batch = g.op("Shape", cls, start=0, end=1)
    full = g.op("Concat", batch, g.op("Shape", learned), axis=0)
    learned = g.op("Expand", g.op("Unsqueeze", learned, g.const([0])), full)
    parts = [image, linear(g, anchors, "prefix.text"), linear(g, cells, "prefix.map"), learned]
    return g.op("Concat", *parts, axis=1)
