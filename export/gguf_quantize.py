"""F16 GGUF -> a smaller one through llama.cpp, and the gate it must pass to be shipped."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.errors import EngineError
from engines.gguf_file import check_gguf
from engines.gguf_model import LlamaModel, llama_cpp
from export.gguf_convert import Say, check_space

# llama.cpp's file types, and what share of next words must stay the same and how far perplexity
# may rise against F16. Seen on SmolLM2-135M and this text: Q8_0 .92 and 1.00, Q6_K .94 and 1.04,
# Q5_K_M .78 and 1.10, Q4_K_M .84 and 1.12 (a hidden size of 576 is no multiple of the 256 that K
# quants want; llama.cpp multiplies with 8-bit activations, so even Q8_0 is not F16).
FILE_TYPES = {"Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15}
LIMITS = {
    "Q8_0": (0.88, 1.03),
    "Q6_K": (0.85, 1.05),
    "Q5_K_M": (0.82, 1.08),
    "Q4_K_M": (0.80, 1.15),
}
_MAX_BUFFER = 1 << 30  # rows held at once while quantizing

# The text of the gate: what this model will write about, and plain prose.
GATE_TEXT = """The station looks at every part, says whether it is good within a deadline, and tells
the line. A crack at the top left of the magnetic tile is about thirty pixels long and darker than
its surroundings. The solar cell shows a bright patch in the center where the contact is broken.
On the ball screw two spots of pitting were found, the larger one near the right edge. There is no
visible defect on this part; its surface is even, grey and clean. If a part cannot be judged in
time it is treated as bad, because only a clear statement may let it pass. The inspector asked how
large the scratch was, and the answer was one point two millimetres. In the morning the light in
the hall is cold, so the first ten pictures are darker than those taken after the lamps are warm.
Frayed edges, blowholes and breaks are the most common faults of pressed magnets. When the camera
is unplugged the station reports that it is not ready and waits for the picture to come back."""


@dataclass(frozen=True)
class GateFigures:
    """A quantization beside its F16 file on the gate text. `top1` is a share of positions."""

    quant: str
    top1: float
    perplexity: float
    perplexity_f16: float

    @property
    def passed(self) -> bool:
        """Within the stated limits of this quantization."""
        top1, rise = LIMITS[self.quant]
        return self.top1 >= top1 and self.perplexity <= self.perplexity_f16 * rise


def quantize(
    source: Path, out: Path, quant: str, say: Say, imatrix: Path | None = None, threads: int = 0
) -> Path:
    """Write `out` as a quantization of the F16 GGUF `source`. Raises EngineError, leaves no half.

    `imatrix` is an importance matrix in GGUF form (llama.cpp's `llama-imatrix`). threads 0 = all.
    """
    if quant not in FILE_TYPES:
        raise EngineError(f"quantization {quant!r} is not one of {', '.join(FILE_TYPES)}")
    check_space(out.parent, source.stat().st_size)
    part = out.with_name(out.name + ".part")
    lib = llama_cpp()
    params = lib.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.max_buf_size = FILE_TYPES[quant], threads, _MAX_BUFFER
    kept = _importance(lib, params, imatrix) if imatrix else None
    say(f"quantizing {source.name} to {quant}")
    code = lib.llama_model_quantize(str(source).encode(), str(part).encode(), params)
    del kept
    try:
        if code:
            raise EngineError(f"{out}: llama.cpp could not quantize to {quant}; is the disk full?")
        check_gguf(part)
    except EngineError:
        part.unlink(missing_ok=True)
        raise
    part.replace(out)
    return out


def _importance(lib: Any, params: Any, path: Path) -> Any:
    """Fill params.imatrix from a GGUF of `NAME.in_sum2` and `NAME.counts`; returns what to keep."""
    try:
        tensors = {t.name: np.asarray(t.data, np.float32) for t in gguf.GGUFReader(path).tensors}
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"{path}: not an importance matrix in GGUF form ({error})") from None
    sums = {n.removesuffix(".in_sum2"): v for n, v in tensors.items() if n.endswith(".in_sum2")}
    if not sums:
        raise EngineError(f"{path}: this GGUF holds no importance matrix (no .in_sum2 tensors)")
    means = {
        n: np.ascontiguousarray(v.ravel() / max(1.0, float(tensors[f"{n}.counts"].max())))
        for n, v in sums.items()
    }
    rows = (lib.llama_model_imatrix_data * (len(means) + 1))()  # the last one ends the list
    for row, (name, mean) in zip(rows, means.items(), strict=False):
        row.name, row.size = name.encode(), mean.size
        row.data = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = ctypes.cast(rows, type(params.imatrix))
    return rows, means


def gate(f16: Path, quantized: Path, quant: str, text: str = GATE_TEXT) -> GateFigures:
    """Top-1 agreement and perplexity of a quantization beside F16, position by position."""
    reference, ids = _all_logits(f16, text)
    figures, _ = _all_logits(quantized, text)
    same = float((reference[:-1].argmax(1) == figures[:-1].argmax(1)).mean())
    return GateFigures(quant, same, perplexity(figures, ids), perplexity(reference, ids))


def perplexity(logits: NDArray[np.float32], ids: list[int]) -> float:
    """exp of the mean negative log likelihood of ids[1:] under logits (n,V) of the ids before."""
    rows = logits[:-1].astype(np.float64)
    rows -= rows.max(1, keepdims=True)
    chosen = rows[np.arange(len(rows)), ids[1:]]
    return float(np.exp(np.mean(np.log(np.exp(rows).sum(1)) - chosen)))


def _all_logits(path: Path, text: str) -> tuple[NDArray[np.float32], list[int]]:
    model = LlamaModel(path, n_ctx=1024, sequences=1)
    try:
        ids = model.tokenize(text, bos=True)[: model.header.context or None]
        return model.score(ids), ids
    finally:
        model.close()
