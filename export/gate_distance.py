"""The distances of an engine against float64, from the engine's own tokens.

Two figures tell two stories. Between PyTorch and an engine, tokens differ by rounding of the whole
tower, and a distance amplifies that: `distance_sq_max`. Here the tokens are the engine's own, so
only the distance kernel is left: `distance_sq_own`. Cosines of one surface are near 1; 2-2cos of
FP32 sums was off by 2e-6 there, so the kernel takes the difference from the neighbour it has found.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.detector import Answer, Memory
from export.model.memory import SNAP, Mode

Rows = Sequence[NDArray[Any]]
F64 = NDArray[np.float64]
NEAR_TIE = 1e-3
"""References whose sums of 675 distances are this close: either may be the nearest."""


def _squared(tokens: Rows, references: Rows, mode: Mode) -> F64:
    """(N,225,3) squared distances of one tile to each reference, float64, no snap."""
    taps = []
    for token, reference in zip(tokens, references, strict=True):
        q, m = token.astype(np.float64), reference.astype(np.float64)
        if mode == "position":
            cos = (m * q[None]).sum(-1)
        else:
            cos = np.stack([(one @ q.T).max(0) for one in m])
        taps.append(2 - 2 * cos)
    return np.maximum(np.stack(taps, -1), 0)


def _error(got: F64, raw: F64) -> float:
    """Largest error; beside the snap both the snapped and the raw value are right."""
    error = np.abs(got - np.where(raw < SNAP, 0, raw))
    beside = np.abs(raw - SNAP) < 1e-6
    return float(np.where(beside, np.minimum(error, np.abs(got - raw)), error).max())


def kernel_error(distances: NDArray[Any], tokens: Rows, references: Rows, mode: Mode) -> float:
    """Largest absolute error of the squared distances (15,15,3) of one tile.

    tokens 3 x (225,D) and references 3 x (N,225,D), unit length. Infinite where a token or a
    distance is no number: no reference is the nearest then.
    """
    got: NDArray[Any] = distances.reshape(-1, 3).astype(np.float64) ** 2
    raw = _squared(tokens, references, mode)
    if not np.isfinite(got).all() or not np.isfinite(raw).all():
        return float("inf")
    if mode == "bank":
        return _error(got, raw.min(0))
    sums = np.sqrt(raw).sum((1, 2))
    near = np.flatnonzero(sums <= sums.min() + NEAR_TIE)
    return float(np.min([_error(got, raw[i]) for i in near]))


def distance_error(answer: Answer, memory: Memory, mode: Mode) -> float:
    """`kernel_error` of a one-tile answer (memory with G = 1) from its own tokens."""
    tokens, references = [t[0] for t in answer.tokens], [m[0] for m in memory.taps]
    return kernel_error(answer.distances[0], tokens, references, mode)
