"""The graphs of a bundle: each part alone, and the fused detector of each matching mode."""

from collections.abc import Callable

import onnx

from export.graph import Graph
from export.model.config import GRID, PATCHES, ModelConfig
from export.model.memory import BLOCK, Mode
from export.parts_detect import head, match, match_flat, prefix, score, tddf, unit
from export.parts_text import encode_text
from export.parts_vision import Encoded, encode

NAMES = ("a", "b", "c")
CELLS = ("B", GRID, GRID, 3)


def _flat(g: Graph, x: str) -> str:
    """(B,15,15,3) -> (B,225,3)."""
    return g.op("Reshape", x, g.const([0, PATCHES, 3]))


def _grid(g: Graph, x: str) -> str:
    """(B,225,3) -> (B,15,15,3)."""
    return g.op("Reshape", x, g.const([0, GRID, GRID, 3]))


def _memory_inputs(g: Graph, config: ModelConfig) -> tuple[list[str], str, str]:
    memory = [
        g.add_input(f"memory_{n}", "f32", ("G", "N", PATCHES, d))
        for n, d in zip(NAMES, config.tap_dims, strict=True)
    ]
    return memory, g.add_input("group", "i64", ("B",)), g.add_input("few_shot", "bool", ())


def _distances(
    g: Graph,
    tokens: list[str],
    inputs: tuple[list[str], str, str],
    mode: Mode,
    block: int,
    flat: bool,
) -> str:
    return match_flat(g, tokens, *inputs, mode) if flat else match(g, tokens, *inputs, mode, block)


def encoder(g: Graph, config: ModelConfig) -> Graph:
    """Tiles u8 -> cls, tap_a, tap_b, tap_c; not unit length."""
    out = encode(g, g.add_input("tiles", "u8", ("B", 240, 240, 3)), config)
    g.scope("")
    g.add_output(out.cls, "cls", ("B", config.embed_dim))
    for n, tap, d in zip(NAMES, out.taps, config.tap_dims, strict=True):
        g.add_output(tap, f"tap_{n}", ("B", PATCHES, d))
    return g


def text(g: Graph, config: ModelConfig) -> Graph:
    """Ids i64 (P,T) -> text (P,E)."""
    out = encode_text(g, g.add_input("ids", "i64", ("P", "T")), config)
    g.scope("").add_output(out, "text", ("P", config.embed_dim))
    return g


def focuser(g: Graph, config: ModelConfig) -> Graph:
    """Taps and anchors (B,2,E) -> p (B,15,15,3)."""
    taps = [
        g.add_input(f"tap_{n}", "f32", ("B", PATCHES, d))
        for n, d in zip(NAMES, config.tap_dims, strict=True)
    ]
    anchors = g.add_input("anchors", "f32", ("B", 2, config.embed_dim))
    p = tddf(g, (taps[0], taps[1], taps[2]), unit(g, anchors), config)
    g.add_output(_grid(g.scope(""), p), "p", CELLS)
    return g


def memory(
    g: Graph, config: ModelConfig, mode: Mode, block: int = BLOCK, *, flat: bool = False
) -> Graph:
    """Tokens (any length), memory (unit) -> distances (B,15,15,3)."""
    tokens = [
        g.add_input(f"tap_{n}", "f32", ("B", PATCHES, d))
        for n, d in zip(NAMES, config.tap_dims, strict=True)
    ]
    inputs = _memory_inputs(g, config)
    units = [unit(g, t) for t in tokens]
    d = _distances(g, units, inputs, mode, block, flat)
    g.add_output(_grid(g.scope(""), d), "distances", CELLS)
    return g


def adapter(g: Graph, config: ModelConfig) -> Graph:
    """f_out, p, am (B,15,15,3), cls (B,E), anchors (B,2,E) -> map, score."""
    grids = [_flat(g, g.add_input(n, "f32", CELLS)) for n in ("f_out", "p", "am")]
    cls = g.add_input("cls", "f32", ("B", config.embed_dim))
    anchors = g.add_input("anchors", "f32", ("B", 2, config.embed_dim))
    maps = head(g, grids[0], grids[1], grids[2], anchors, config)
    s = score(g, maps, unit(g, cls), unit(g, anchors))
    g.scope("").add_output(maps, "map", ("B", 240, 240))
    g.add_output(s, "score", ("B",))
    return g


def words(g: Graph, config: ModelConfig) -> Graph:
    """cls, anchors, f_out -> prefix (B,21,H)."""
    cls = g.add_input("cls", "f32", ("B", config.embed_dim))
    anchors = g.add_input("anchors", "f32", ("B", 2, config.embed_dim))
    out = prefix(g, cls, anchors, g.add_input("f_out", "f32", CELLS))
    g.scope("").add_output(out, "prefix", ("B", 21, config.llm_hidden))
    return g


def _grafted(g: Graph, tower: onnx.ModelProto) -> Encoded:
    made = g.graft(tower)
    return Encoded(made["cls"], (made["tap_a"], made["tap_b"], made["tap_c"]))


def detector(
    g: Graph,
    config: ModelConfig,
    mode: Mode,
    block: int = BLOCK,
    *,
    flat: bool = False,
    tower: onnx.ModelProto | None = None,
) -> Graph:
    """The hot path: encoder, TDDF, memory, head and score in one graph.

    `tower`: a written (quantised) encoder to use instead of the plain one.
    """
    tiles = g.add_input("tiles", "u8", ("B", 240, 240, 3))
    inputs = _memory_inputs(g, config)
    anchors = g.add_input("anchors", "f32", ("G", 2, config.embed_dim))
    encoded = encode(g, tiles, config) if tower is None else _grafted(g, tower)
    g.scope("units")
    tokens = [unit(g, t) for t in encoded.taps]
    cls = unit(g, encoded.cls)
    given = g.op("Gather", anchors, inputs[1], axis=0)
    chosen = unit(g, given)
    p = tddf(g, (encoded.taps[0], encoded.taps[1], tokens[2]), chosen, config)
    d = _distances(g, tokens, inputs, mode, block, flat)
    am = g.op("Mul", d, g.const(0.5))
    f_out = g.op("Mul", am, p)
    maps = head(g, f_out, p, am, given, config)
    s = score(g, maps, cls, chosen)
    g.scope("").add_output(s, "score", ("B",))
    g.add_output(maps, "map", ("B", 240, 240))
    for x, name in ((p, "p"), (d, "distances"), (f_out, "f_out")):
        g.add_output(_grid(g, x), name, CELLS)
    for n, t, dim in zip(NAMES, tokens, config.tap_dims, strict=True):
        g.add_output(t, f"tokens_{n}", ("B", PATCHES, dim))
    g.add_output(cls, "cls", ("B", config.embed_dim))
    return g


PARTS: dict[str, Callable[[Graph, ModelConfig], Graph]] = {
    "encoder": encoder, "text": text, "tddf": focuser, "head": adapter, "prefix": words,
}  # fmt: skip
