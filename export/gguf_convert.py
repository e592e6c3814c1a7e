"""Hugging Face Llama folder -> F16 GGUF, tensor by tensor, resumable.

The header (metadata and the table of tensors) is written first; the numbers follow in that order.
An interrupted conversion leaves `NAME.gguf.part`, whose header says which weights it comes from;
the next run continues after the last whole tensor. A failed one leaves nothing.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.gguf_file import read_header
from export.gguf_source import Checkpoint
from export.gguf_vocab import read_vocabulary, write_vocabulary

SOURCE_KEY = "inspection.source"  # identity of the checkpoint, to know a stale or foreign file
ALIGN = 32
_SPARE = 64 << 20  # room left on the disk beside the file itself

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class _Tensor:
    source: str
    name: str
    shape: tuple[int, ...]
    dtype: type[np.float16] | type[np.float32]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def padded(self) -> int:
        return -(-self.nbytes // ALIGN) * ALIGN


def convert(folder: Path, out: Path, say: Say) -> Path:
    """Write `out` (F16 GGUF) from a checkpoint folder; an `out` of the same weights is kept.

    Raises EngineError for an unfit checkpoint or a full disk, and then leaves no half file.
    """
    checkpoint = Checkpoint(folder)
    if out.exists() and read_header(out).metadata.get(SOURCE_KEY) == checkpoint.identity():
        say(f"{out} is up to date")
        return out
    tensors = _plan(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    part, head = out.with_name(out.name + ".part"), out.with_name(out.name + ".head")
    done = part.stat().st_size if part.exists() else 0
    check_space(out.parent, sum(t.padded for t in tensors) - done)
    try:
        _write_header(checkpoint, tensors, head, out.stem)
        _write_tensors(checkpoint, tensors, head, part, say)
        part.replace(out)
    except (OSError, EngineError) as error:
        part.unlink(missing_ok=True)
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"{out}: cannot be written ({error.strerror}); free some space") from None
    finally:
        head.unlink(missing_ok=True)
    return out


def check_space(folder: Path, needed: int) -> None:
    """Raise EngineError when the disk of `folder` has less than `needed` bytes and some spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise EngineError(
            f"{folder}: the disk has {free / 2**30:.1f} GiB free, the GGUF needs "
            f"{(needed + _SPARE) / 2**30:.1f} GiB"
        )


def _plan(checkpoint: Checkpoint) -> list[_Tensor]:
    """The tensors of the file in order; every tensor of the checkpoint must have its place."""
    plan = []
    for source in checkpoint:
        if "rotary_emb" in source:  # a buffer of old checkpoints, computed from rope_theta
            continue
        if source == "lm_head.weight" and checkpoint.config.get("tie_word_embeddings"):
            continue
        shape = checkpoint.shape(source)
        kept = np.float32 if len(shape) == 1 else np.float16
        plan.append(_Tensor(source, _name(checkpoint, source), shape, kept))
    return sorted(plan, key=lambda t: _order(t.name))


def _name(checkpoint: Checkpoint, source: str) -> str:
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", source)
    if found and found[2] in _LAYER:
        return f"blk.{found[1]}.{_LAYER[found[2]]}.weight"
    if source in _TOP:
        return _TOP[source]
    raise EngineError(f"{checkpoint.folder}: the tensor {source} has no place in a Llama GGUF")


def _order(name: str) -> tuple[int, str]:
    found = re.match(r"blk\.(\d+)\.", name)
    return (int(found[1]), name) if found else (-1, name)


def _write_header(checkpoint: Checkpoint, tensors: list[_Tensor], path: Path, name: str) -> None:
    """Metadata and tensor table into `path`, padded to where the numbers begin."""
    writer = gguf.GGUFWriter(path, "llama")
    _metadata(writer, checkpoint, name)
    write_vocabulary(
        writer, read_vocabulary(checkpoint.folder, _vocab_size(checkpoint)), checkpoint.folder
    )
    for t in tensors:
        writer.add_tensor_info(t.name, t.shape, np.dtype(t.dtype), t.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % ALIGN))


def _vocab_size(checkpoint: Checkpoint) -> int:
    return checkpoint.shape("model.embed_tokens.weight")[0]


def _metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, name: str) -> None:
    c = checkpoint.config
    heads = c["num_attention_heads"]
    writer.add_name(name)
    writer.add_string(SOURCE_KEY, checkpoint.identity())
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_F16))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(c.get("max_position_embeddings", 2048))
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(c.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(c.get("rms_norm_eps", 1e-6))
    writer.add_rope_dimension_count(c.get("head_dim") or c["hidden_size"] // heads)
    writer.add_vocab_size(_vocab_size(checkpoint))
    _rope(writer, checkpoint)


def _rope(writer: gguf.GGUFWriter, checkpoint: Checkpoint) -> None:
    """Rotary base and scaling, under their old names or the newer `rope_parameters`."""
    c = checkpoint.config
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    writer.add_rope_freq_base(float(rope.get("rope_theta") or c.get("rope_theta") or 10000.0))
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    elif kind != "default":
        raise EngineError(
            f"{checkpoint.folder}: rotary scaling of type {kind!r} cannot be converted here; "
            "give a ready GGUF instead"
        )


def _write_tensors(
    checkpoint: Checkpoint, tensors: list[_Tensor], head: Path, part: Path, say: Say
) -> None:
    """Append the numbers to `part`, after what a former run has already written whole."""
    start = head.stat().st_size
    done = _resume_at(tensors, head, part)
    if not done:
        shutil.copyfile(head, part)
    with part.open("r+b") as file:
        file.truncate(start + sum(t.padded for t in tensors[:done]))
        file.seek(0, os.SEEK_END)
        for i, tensor in enumerate(tensors[done:], done + 1):
            values = _values(checkpoint, tensor)
            file.write(values.tobytes())
            file.write(bytes(tensor.padded - tensor.nbytes))
            say(f"[{i}/{len(tensors)}] {tensor.name} {tensor.shape}")
        file.flush()
        os.fsync(file.fileno())


def _resume_at(tensors: list[_Tensor], head: Path, part: Path) -> int:
    """How many tensors of an unfinished `part` can stay; the last one written is not trusted."""
    if not part.exists():
        return 0
    header = head.read_bytes()
    with part.open("rb") as file:
        if file.read(len(header)) != header:
            return 0
    room, whole = part.stat().st_size - len(header), 0
    for tensor in tensors:
        room -= tensor.padded
        if room < 0:
            break
        whole += 1
    return max(0, whole - 1)


def _values(checkpoint: Checkpoint, tensor: _Tensor) -> NDArray[np.floating]:
    values = checkpoint.load(tensor.source)
    if not np.isfinite(values).all():  # NaN is not larger than the largest F16 either
        raise EngineError(
            f"{checkpoint.folder}: {tensor.source} has values that are not finite; the checkpoint "
            "is damaged, fetch it again"
        )
    config = checkpoint.config
    heads = config["num_attention_heads"]
    if tensor.name.endswith("attn_q.weight"):
        values = interleave(values, heads)
    elif tensor.name.endswith("attn_k.weight"):
        values = interleave(values, config.get("num_key_value_heads") or heads)
    if tensor.dtype is np.float16 and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise EngineError(f"{checkpoint.folder}: {tensor.source} has values too large for F16")
    return values.astype(tensor.dtype)


def interleave(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows of a Q or K projection from two halves (Hugging Face) to pairs (ggml) for rotation."""
    rows = weight.shape[0] // heads
    halves = weight.reshape(heads, 2, rows // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)
