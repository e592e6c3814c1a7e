"""A small memory for many good parts: greedy k-center over the tokens of a `bank`.

A full bank of 1,024 references is 230,400 tokens per tap and some sixty times the encoder's work
per frame; most of those tokens repeat each other. Greedy k-center (Gonzalez 1985, as PatchCore
uses it) keeps the tokens that cover the rest best: every dropped token lies within the stated
radius of a kept one, so no distance grows by more than that radius.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.detector import PATCHES, Memory
from engines.errors import UsageError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
POOL = 1024
"""Farthest tokens looked at together. One pick after the other over all tokens is bound by memory
bandwidth; a pool turns the pass over all tokens into a matrix product and stays exactly greedy."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Coverage:
    """How well the kept tokens of one tap stand for all: distances in [0,2] to the nearest."""

    kept: int
    of: int
    radius: float
    mean: float


def _cosines(tokens: F32, chosen: F32, rows: int = 16384) -> F32:
    """Largest cosine of each token (M,D) to any of `chosen` (K,D): (M,)."""
    best = np.empty(len(tokens), np.float32)
    for start in range(0, len(tokens), rows):
        best[start : start + rows] = (tokens[start : start + rows] @ chosen.T).max(1)
    return best


def _picks(pool: F32, best: F32, ceiling: float, count: int) -> list[int]:
    """Greedy picks inside a pool, as long as no token outside it could be farther.

    pool (P,D), best (P,) its largest cosine to what is kept already; `ceiling`: the smallest
    such cosine outside the pool, which can only grow.
    """
    best = best.copy()
    picked: list[int] = []
    while len(picked) < count:
        index = int(best.argmin())
        if picked and best[index] > ceiling:
            break
        picked.append(index)
        np.maximum(best, pool @ pool[index], out=best)
    return picked


def greedy_k_center(
    tokens: F32, count: int, progress: Progress | None = None
) -> tuple[I64, Coverage]:
    """Rows of `tokens` f32 (M,D), unit length, that cover the rest best: (i64 (count,), Coverage).

    Starts at the token nearest to the mean; every next one is the farthest from all kept, so the
    radius is at most twice the smallest possible. Deterministic. Keeps all when count >= M.
    """
    total = len(tokens)
    if count >= total:
        return np.arange(total), Coverage(total, total, 0.0, 0.0)
    kept = [int((tokens @ tokens.mean(0)).argmax())]
    best = _cosines(tokens, tokens[kept])
    while len(kept) < count:
        size = min(POOL, total)
        pool = np.argpartition(best, size - 1)[:size]
        pool.sort()
        outside = best[pool].max() if size < total else np.inf
        chosen = pool[_picks(tokens[pool], best[pool], float(outside), count - len(kept))]
        kept += chosen.tolist()
        np.maximum(best, _cosines(tokens, tokens[chosen]), out=best)
        if progress is not None:
            progress(len(kept), count)
    distance = np.sqrt(np.maximum(2 - 2 * best.astype(np.float64), 0))
    distance[distance < 2e-3] = 0  # the snap of the engines: d2 below 4e-6 counts as 0
    return np.array(kept, np.int64), Coverage(count, total, *_rounded(distance))


def _rounded(distance: NDArray[np.float64]) -> tuple[float, float]:
    return float(distance.max()), float(distance.mean())


def reduce_memory(
    memory: Memory, references: int, progress: Progress | None = None
) -> tuple[Memory, tuple[Coverage, ...]]:
    """A `bank` memory 3 x (1,N,225,D) cut to the size of `references` references, per tap.

    The kept tokens of a tap stand in rows of 225 as references do, so engines need nothing new,
    but a row is no picture any more: only mode `bank`, which asks each tap for its nearest token
    whatever the reference, may use the result. Raises UsageError for grouped memory or
    references < 1. Returns the memory unchanged (radius 0) when N <= references.
    """
    if memory.taps[0].shape[0] != 1:
        raise UsageError("a coreset needs one shared memory (mode 'bank'), not one per tile")
    if references < 1:
        raise UsageError("a coreset needs at least the size of one reference")
    taps, covered = [], []
    for tap in memory.taps:
        tokens = np.ascontiguousarray(tap.reshape(-1, tap.shape[-1]))
        rows, coverage = greedy_k_center(tokens, references * PATCHES, progress)
        taps.append(tokens[rows].reshape(1, -1, PATCHES, tap.shape[-1]))
        covered.append(coverage)
    return Memory(tuple(taps)), tuple(covered)
