"""Any language model for the describer: a checkpoint becomes a GGUF, a GGUF is taken as it is.

`python -m export.build_engines --llm PATH_OR_HUB --quant Q4_K_M` calls `make_gguf`.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineError
from engines.gguf_file import check_gguf
from export.gguf_convert import Say, convert
from export.gguf_quantize import FILE_TYPES, LIMITS, GateFigures, gate, quantize
from export.gguf_source import find_checkpoint


@dataclass(frozen=True)
class GgufReport:
    """What the bundle's manifest says about its language model."""

    path: Path
    sha256: str
    hidden: int
    quant: str
    gate: GateFigures | None


def make_gguf(
    source: str,
    out: Path,
    quant: str | None = None,
    *,
    imatrix: Path | None = None,
    say: Say = lambda text: print(text, file=sys.stderr, flush=True),
) -> GgufReport:
    """GGUF of `source` (a GGUF, a Hugging Face Llama folder, or `owner/name` on the hub).

    Written into the folder `out` as NAME-F16.gguf and, with `quant` (Q8_0, Q6_K, Q5_K_M, Q4_K_M),
    NAME-QUANT.gguf; what is up to date is kept, an interrupted conversion is continued. Raises
    EngineError with one sentence; a quantization that fails the gate is removed.
    """
    if quant is not None and quant not in FILE_TYPES:
        raise EngineError(f"quantization {quant!r} is not one of {', '.join(FILE_TYPES)}")
    path = find_checkpoint(source)
    if path.is_file():
        return _report(path, "as given", None)
    out.mkdir(parents=True, exist_ok=True)
    name = Path(source).resolve().name  # the last part of a path and of `owner/name` alike
    f16 = convert(path, out / f"{name}-F16.gguf", say)
    if quant is None:
        return _report(f16, "F16", None)
    small = quantize(f16, out / f"{name}-{quant}.gguf", quant, say, imatrix)
    figures = gate(f16, small, quant)
    say(
        f"{quant}: top-1 {figures.top1:.1%} of F16's, perplexity {figures.perplexity:.2f} "
        f"(F16 {figures.perplexity_f16:.2f})"
    )
    if not figures.passed:
        small.unlink()
        top1, rise = LIMITS[quant]
        raise EngineError(
            f"{small.name}: {quant} falls behind F16 (top-1 {figures.top1:.1%}, perplexity x "
            f"{figures.perplexity / figures.perplexity_f16:.3f}; limits {top1:.0%} and x {rise}) "
            "and is not shipped; choose a finer quantization"
        )
    return _report(small, quant, figures)


def _report(path: Path, quant: str, figures: GateFigures | None) -> GgufReport:
    header = check_gguf(path)
    with path.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    return GgufReport(path, sha, header.hidden, quant, figures)
