"""ONNX of the image tower: pixels to taps and CLS (mirror of export.model.clip)."""

from typing import NamedTuple

import numpy as np

from export.graph import Graph
from export.model.clip import LocalTap, neighbours
from export.model.config import CLIP_MEAN, CLIP_STD, GRID, PATCHES, ModelConfig
from export.model.stem import BLOCKS, STEM_CHANNELS, STRIDE8

TOKENS = PATCHES + 1
EPS = 1e-5


class Encoded(NamedTuple):
    """Tensor names: cls (B,E), taps (B,225,W), (B,225,W), (B,225,E)."""

    cls: str
    taps: tuple[str, str, str]


def layer_norm(g: Graph, x: str, name: str) -> str:
    """LayerNorm over the last axis; stays FP32 in every precision."""
    weights = g.weight(f"{name}.weight"), g.weight(f"{name}.bias")
    return g.op("LayerNormalization", x, *weights, axis=-1, epsilon=EPS)


def linear(g: Graph, x: str, name: str) -> str:
    """x W' + b for a torch Linear called `name`."""
    y = g.product("MatMul", x, g.weight(f"{name}.weight", transpose=True))
    return g.op("Add", y, g.weight(f"{name}.bias"))


def normalise(g: Graph, tiles: str) -> str:
    """u8 (B,240,240,3) RGB -> f32 (B,3,240,240), CLIP mean and std."""
    # Cast first: TensorRT takes u8 at its input only straight into a cast.
    x = g.op("Transpose", g.op("Cast", tiles, to=1), perm=[0, 3, 1, 2])
    std = np.array(CLIP_STD, np.float64).reshape(1, 3, 1, 1)
    mean = np.array(CLIP_MEAN, np.float64).reshape(1, 3, 1, 1)
    x = g.op("Mul", x, g.const((1 / 255 / std).astype(np.float32)))
    return g.op("Sub", x, g.const((mean / std).astype(np.float32)))


def _conv(g: Graph, x: str, name: str, kernel: int, stride: int, groups: int, relu: bool) -> str:
    total = max(kernel - stride, 0) if stride > 1 else kernel - 1
    pads = [total // 2, total // 2, total - total // 2, total - total // 2]
    x = g.product(
        "Conv", x, g.weight(f"{name}.weight"), g.weight(f"{name}.bias"),
        kernel_shape=[kernel, kernel], strides=[stride, stride], pads=pads, group=groups,
    )  # fmt: skip
    return g.op("Clip", x, g.const(0.0), g.const(6.0)) if relu else x


def _stem(g: Graph, pixels: str) -> str:
    """EfficientNet-Lite0 to stride 16 with the stride-8 map unshuffled: (B,272,15,15)."""
    x = fine = _conv(g.scope("stem.first"), pixels, "visual.stem.first", 3, 2, 1, True)
    cin = 32
    for i, (kernel, stride, expansion, cout) in enumerate(BLOCKS):
        name, mid = f"visual.stem.blocks.{i}", cin * expansion
        g.scope(f"stem.{i}")
        y = _conv(g, x, f"{name}.expand", 1, 1, 1, True) if expansion > 1 else x
        y = _conv(g, y, f"{name}.depthwise", kernel, stride, mid, True)
        y = _conv(g, y, f"{name}.project", 1, 1, 1, False)
        x = g.op("Add", x, y) if stride == 1 and cin == cout else y
        fine = x if i == STRIDE8 else fine
        cin = cout
    g.scope("stem.join")
    six = g.op("Reshape", fine, g.const([0, 40, GRID, 2, GRID, 2]))
    six = g.op("Transpose", six, perm=[0, 1, 3, 5, 2, 4])
    return g.op("Concat", x, g.op("Reshape", six, g.const([0, 160, GRID, GRID])), axis=1)


def features_of(g: Graph, tiles: str, config: ModelConfig) -> str:
    """u8 tiles -> the stem's output (B,272,15,15); pixels for a plain patch embedding."""
    pixels = normalise(g.scope("pixels"), tiles)
    return pixels if config.vision.stem == "patch" else _stem(g, pixels)


def embed(g: Graph, features: str, config: ModelConfig) -> str:
    """`features_of` -> patch tokens with CLS and positions after ln_pre, (B,226,W)."""
    width = config.vision.width
    if config.vision.stem == "patch":
        g.scope("patch")
        weight = g.weight("visual.conv1.weight")
        x = g.product("Conv", features, weight, kernel_shape=[16, 16], strides=[16, 16])
        x = g.op("Transpose", g.op("Reshape", x, g.const([0, width, PATCHES])), perm=[0, 2, 1])
    else:
        x = g.op("Reshape", features, g.const([0, STEM_CHANNELS, PATCHES]))
        x = g.scope("patch").op("Transpose", x, perm=[0, 2, 1])
        flat = g.op("Reshape", g.weight("visual.conv1.weight"), g.const([width, STEM_CHANNELS]))
        x = g.product("MatMul", x, g.op("Transpose", flat))
    batch = g.op("Shape", x, start=0, end=1)
    shape = g.op("Concat", batch, g.const([1, width]), axis=0)
    cls = g.op("Reshape", g.weight("visual.class_embedding"), g.const([1, 1, width]))
    cls = g.op("Expand", cls, shape)
    x = g.op("Add", g.op("Concat", cls, x, axis=1), g.weight("visual.positional_embedding"))
    return layer_norm(g, x, "visual.ln_pre")


class BlockWriter:
    """Writes one residual attention block, with its local branch where it is wanted."""

    def __init__(self, g: Graph, name: str, width: int, heads: int, tokens: int) -> None:
        self.g, self.name, self.width, self.heads = g, name, width, heads
        self.tokens, self.depth = tokens, width // heads

    def heads_of(self, x: str, tokens: int) -> str:
        """(B,T,W) -> (B,heads,T,d)."""
        x = self.g.op("Reshape", x, self.g.const([0, tokens, self.heads, self.depth]))
        return self.g.op("Transpose", x, perm=[0, 2, 1, 3])

    def qkv(self, y: str) -> tuple[str, str, str]:
        """Q (already divided by sqrt(d)), K, V as (B,T,W)."""
        g, w = self.g, self.width
        scale = np.ones(3 * w, np.float32)
        scale[:w] = self.depth**-0.5
        weight = f"{self.name}.attn.in_proj_weight"
        y = g.product("MatMul", y, g.weight(weight, transpose=True, scale=scale))
        y = g.op("Add", y, g.weight(f"{self.name}.attn.in_proj_bias", scale=scale))
        q, k, v = g.split(y, [w, w, w], 2)
        return q, k, v

    def part(self, y: str, number: int, scale: float | None = None) -> str:
        """One of Q, K, V alone, times `scale`."""
        g, rows = self.g, (number * self.width, (number + 1) * self.width)
        weight, bias = (f"{self.name}.attn.in_proj_{n}" for n in ("weight", "bias"))
        y = g.product("MatMul", y, g.weight(weight, transpose=True, scale=scale, rows=rows))
        return g.op("Add", y, g.weight(bias, scale=scale, rows=rows))

    def attend(self, q: str, k: str, v: str, tokens: int, mask: str | None = None) -> str:
        """Scaled q, k, v as heads -> merged (B,tokens,W), before `out_proj`."""
        g = self.g
        logits = g.product("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        if mask:
            logits = g.op("Add", logits, mask)
        y = g.product("MatMul", g.op("Softmax", logits, axis=-1), v)
        return self.merge(y, tokens)

    def merge(self, heads: str, tokens: int) -> str:
        """(B,heads,T,d) -> (B,T,W)."""
        y = self.g.op("Transpose", heads, perm=[0, 2, 1, 3])
        return self.g.op("Reshape", y, self.g.const([0, tokens, self.width]))

    def out(self, merged: str) -> str:
        """The output projection."""
        return linear(self.g, merged, f"{self.name}.attn.out_proj")

    def mlp(self, x: str) -> str:
        """LN2, Linear, GELU (erf), Linear."""
        y = layer_norm(self.g, x, f"{self.name}.ln_2")
        y = self.g.op("Gelu", linear(self.g, y, f"{self.name}.mlp.c_fc"))
        return linear(self.g, y, f"{self.name}.mlp.c_proj")

    def vv(self, v_heads: str) -> str:
        """The local branch: softmax(V V'/sqrt(d)) V, projected."""
        scaled = self.g.op("Mul", v_heads, self.g.const(self.depth**-0.5))
        return self.out(self.attend(scaled, v_heads, v_heads, self.tokens))

    def write(self, x: str, *, mask: str | None = None) -> tuple[str, str]:
        """Next stream and V heads."""
        g = self.g
        q, k, v = self.qkv(layer_norm(g, x, f"{self.name}.ln_1"))
        heads = self.heads_of(v, self.tokens)
        keys = self.heads_of(k, self.tokens)
        attended = self.attend(self.heads_of(q, self.tokens), keys, heads, self.tokens, mask)
        x = g.op("Add", x, self.out(attended))
        return g.op("Add", x, self.mlp(x)), heads

    def write_last(self, x: str) -> tuple[str, str]:
        """`write` for the last block: the stream of CLS alone, (B,1,W), and the V heads of all.

        Nothing else of it is read, so queries, MLP and residual need one row. No K is computed
        either: q (y Wk + bk)' = (q Wk') y' + q bk', and softmax does not see the second term.
        Exact, and it saves most of a block.
        """
        g, w = self.g, self.width
        first = g.const([0]), g.const([1]), g.const([1])
        y = layer_norm(g, x, f"{self.name}.ln_1")
        heads = self.heads_of(self.part(y, 2), self.tokens)
        q = self.heads_of(self.part(g.op("Slice", y, *first), 0, self.depth**-0.5), 1)
        keys = g.weight(f"{self.name}.attn.in_proj_weight", rows=(w, 2 * w))
        keys = g.op("Reshape", keys, g.const([1, self.heads, self.depth, w]))
        across = g.op("Transpose", g.op("Unsqueeze", y, g.const([1])), perm=[0, 1, 3, 2])
        logits = g.product("MatMul", g.product("MatMul", q, keys), across)  # (B,heads,1,T)
        merged = self.merge(g.product("MatMul", g.op("Softmax", logits, axis=-1), heads), 1)
        x = g.op("Add", g.op("Slice", x, *first), self.out(merged))
        return g.op("Add", x, self.mlp(x)), heads


def _local(writer: BlockWriter, branch: str, v: str, stream: str, local: str) -> str:
    if branch == "enhanced":
        return writer.vv(v)
    if branch == "accumulated":
        return writer.g.op("Add", local, writer.vv(v))
    return writer.out(writer.merge(v, TOKENS)) if branch == "maskclip" else stream


def local_tap(g: Graph, features: str, half: int) -> str:
    """export.model.clip.LocalTap; in FP32 in every precision, for distances are read from it."""
    name = "visual.local"
    x = g.scope("local").op("Conv", features, g.weight(f"{name}.mix.weight"), kernel_shape=[1, 1])
    x = g.op(
        "Conv", x, g.weight(f"{name}.blur.weight"),
        kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=half,
    )  # fmt: skip
    x = g.op("Transpose", g.op("Reshape", x, g.const([0, half, PATCHES])), perm=[0, 2, 1])
    norm = g.op("ReduceL2", x, g.const([-1]), keepdims=1)
    u = g.op("Div", x, g.op("Max", norm, g.const(1e-12)))
    alike = g.op("MatMul", u, g.op("Transpose", u, perm=[0, 2, 1]))
    alike = g.op("Mul", alike, g.weight(f"{name}.sharpness"))
    alike = g.op("Softmax", g.op("Add", alike, g.const(neighbours(LocalTap.NEAR).numpy())), axis=-1)
    rest = g.op("Sub", u, g.op("MatMul", alike, u))
    return g.op("Concat", u, g.op("Mul", rest, g.weight(f"{name}.share")), axis=2)


def encode(g: Graph, tiles: str, config: ModelConfig) -> Encoded:
    """The whole image tower."""
    vision = config.vision
    features = features_of(g, tiles, config)
    stream = local = embed(g, features, config)
    taps = [local_tap(g, features, vision.local)] if vision.local else []
    from_blocks = vision.taps[len(taps) :]
    for index in range(vision.layers):
        g.scope(f"block{index + 1}")
        name = f"visual.transformer.resblocks.{index}"
        writer = BlockWriter(g, name, vision.width, vision.heads, TOKENS)
        last = index == vision.layers - 1
        if last and vision.branch != "clip":
            stream, v = writer.write_last(stream)
        else:
            stream, v = writer.write(stream)
        tapped = index + 1 in from_blocks
        g.scope(f"tap{index + 1}")
        if tapped or vision.branch == "accumulated":
            local = _local(writer, vision.branch, v, stream, local)
        if tapped:
            taps.append(g.op("Slice", local, g.const([1]), g.const([TOKENS]), g.const([1])))
    proj = g.scope("project").weight("visual.proj")
    aligned = g.product("MatMul", layer_norm(g, taps[2], "visual.ln_post"), proj)
    first = g.op("Gather", stream, g.const(0), axis=1)
    cls = g.product("MatMul", layer_norm(g, first, "visual.ln_post"), proj)
    return Encoded(cls, (taps[0], taps[1], aligned))
