"""ONNX of the text tower: token ids (P,T) to embeddings (P,E)."""

import numpy as np

from export.graph import Graph
from export.model.clip import EOT
from export.model.config import ModelConfig
from export.parts_vision import BlockWriter, layer_norm


def _embed(g: Graph, ids: str, config: ModelConfig) -> str:
    """Token embedding, factorised or not; ids from `vocab` on are learned context vectors."""
    text = config.text
    known = g.op("Min", ids, g.const(text.vocab - 1))
    x = g.op("Gather", g.weight("token_embedding.weight"), known, axis=0)
    if text.rank:
        x = g.op("MatMul", x, g.weight("token_projection.weight", transpose=True))
    if not text.learned_contexts:
        return x
    row = g.op("Max", g.op("Sub", ids, g.const(text.vocab)), g.const(0))
    learned = g.op("Gather", g.weight("contexts"), row, axis=0)
    is_learned = g.op("Unsqueeze", g.op("GreaterOrEqual", ids, g.const(text.vocab)), g.const([2]))
    return g.op("Where", is_learned, learned, x)


def encode_text(g: Graph, ids: str, config: ModelConfig) -> str:
    """(P,T) i64 ids -> (P,E), pooled at the first EOT, not unit length."""
    text = config.text
    g.scope("text.embed")
    length = g.op("Shape", ids, start=1, end=2)
    ends = g.const([0]), length, g.const([0])
    x = g.op("Add", _embed(g, ids, config), g.op("Slice", g.weight("positional_embedding"), *ends))
    future = np.triu(np.full((text.context, text.context), -np.inf, np.float32), 1)
    axes = g.const([0, 1])
    square = g.op("Concat", length, length, axis=0)
    mask = g.op("Slice", g.const(future), g.const([0, 0]), square, axes)
    for index in range(text.layers):
        g.scope(f"text.block{index + 1}")
        # tokens = -1: the text length is dynamic, Reshape infers it
        writer = BlockWriter(g, f"transformer.resblocks.{index}", text.width, text.heads, -1)
        x, _ = writer.write(x, mask=mask)
    g.scope("text.pool")
    end = g.op("ArgMax", g.op("Cast", g.op("Equal", ids, g.const(EOT)), to=6), axis=1, keepdims=1)
    pooled = g.op("GatherND", x, end, batch_dims=1)
    return g.op("MatMul", layer_norm(g, pooled, "ln_final"), g.weight("text_projection"))
