"""What the memory costs from 1 to 1,024 references: time, bytes, and that both are linear.

python -m benchmarks.msspmm [--max 1024]
"""

import argparse
import resource
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Case, Report, line_plot, measure, publish
from engines.bundle import load_bundle
from engines.session import Session

F32 = NDArray[np.float32]
MODES = ("position", "nearest", "bank")
PATCHES = 225


def _unit(rng: np.random.Generator, *shape: int) -> F32:
    x = rng.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def feeds(count: int, dims: tuple[int, ...]) -> dict[str, Any]:
    """Unit tokens of one tile and `count` random unit references."""
    rng = np.random.default_rng(count)
    tokens = {f"tap_{n}": _unit(rng, 1, PATCHES, d) for n, d in zip("abc", dims, strict=True)}
    return {"group": np.zeros(1, np.int64), **tokens}


def bind(session: Session, count: int, dims: tuple[int, ...]) -> int:
    """Bind `count` references; bytes they take."""
    rng = np.random.default_rng(1)
    total = 0
    for name, dim in zip("abc", dims, strict=True):
        block = _unit(rng, 1, count, PATCHES, dim)
        session.bind(f"memory_{name}", block)
        total += block.nbytes
    session.bind("few_shot", np.array(True))
    return total


def one_size(count: int, dims: tuple[int, ...], threads: int) -> dict[str, Any]:
    """Time of the three modes side by side at one memory size."""
    bundle = load_bundle("nano")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cases, held = [], 0
    for mode in MODES:
        session = Session(bundle.file(f"msspmm.{mode}.onnx"), threads=threads)
        held = bind(session, count, dims)
        given = feeds(count, dims)
        cases.append(Case(mode, lambda s=session, f=given: s.run(f)))  # type: ignore[misc]
    timings = measure(cases, rounds=9 if count < 64 else 3, warmup=1, min_ms=1.0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    row: dict[str, Any] = {"references": count, "memory MB": round(held / 1e6, 1)}
    row |= {f"{m} ms": round(timings[m].median, 3) for m in MODES}
    row["process grew MB"] = round(grown / 1e3, 1)
    return row


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    dims = load_bundle("nano").manifest.tap_dims
    sizes = [n for n in (1, 4, 16, 64, 256, 1024) if n <= args.max]
    rows = [one_size(n, dims, args.threads) for n in sizes]
    first, last = rows[-2], rows[-1]
    factor = last["references"] / first["references"]
    growth = {m: last[f"{m} ms"] / first[f"{m} ms"] for m in MODES}
    told = ", ".join(f"{m} {g:.2f}x" for m, g in growth.items())
    lines = {m: [(r["references"], r[f"{m} ms"]) for r in rows] for m in MODES}
    notes = [
        f"From {first['references']} to {last['references']} references ({factor:g}x) time grows: "
        f"{told}. Linear is {factor:g}x.",
        "The largest intermediate is one block of 4 references: 900 x 225 cosines per tap "
        "(0.8 MB); an (N*225) x 225 array at N = 1,024 would be 207 MB per tap.",
        "'process grew' holds the three copies of the memory that the three modes bind.",
    ]
    plot = line_plot("msspmm", lines, "references N", "ms per tile")
    publish(Report("msspmm", "Memory: cost of N references", rows, notes, args.threads, plot=plot))


if __name__ == "__main__":
    main()
