"""What a user would take instead, on the same EfficientNet-Lite0 features, shots and pictures.

SPADE (2020), PaDiM (2021), PatchCore (2022), WinCLIP-style windows (2023), and zero-shot text only.
Grids are f32 (N,15,15); maps are their bilinear enlargement, scores their maximum.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
GRID = 15
# The 112 deep channels come first in the stem's output, the unshuffled stride-8 map after them.
DEEP = 112


@dataclass(frozen=True)
class Variant:
    """How PatchCore sees the features: channels, 3x3 pooling, unit length, own-image cue."""

    name: str
    deep: bool
    pooled: bool
    unit: bool


VARIANTS = tuple(
    Variant(f"{'deep' if d else 'all'}{'+pool' if p else ''}{'+unit' if u else ''}", d, p, u)
    for d in (True, False)
    for p in (True, False)
    for u in (True, False)
)


def rows(features: F32, variant: Variant) -> F32:
    """Stem features (N,272,15,15) as patch rows (N,225,C) of a variant."""
    x = features[:, :DEEP] if variant.deep else features
    x = np.asarray(x, np.float32).transpose(0, 2, 3, 1)
    if variant.pooled:
        x = box(x, 3)
    x = x.reshape(len(x), GRID * GRID, -1)
    if variant.unit:
        x = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return np.ascontiguousarray(x)


def box(grids: F32, side: int) -> F32:
    """Mean over side x side neighbours of (N,15,15,C), edges repeated."""
    before = side // 2
    pad = ((0, 0), (before, side - 1 - before), (before, side - 1 - before), (0, 0))
    wide = np.pad(grids, pad, mode="edge")
    high, across = grids.shape[1:3]
    shifts = [wide[:, y : y + high, x : x + across] for y in range(side) for x in range(side)]
    return np.asarray(np.sum(shifts, axis=0) / side**2, np.float32)


def nearest(queries: F32, bank: F32) -> F32:
    """Distance (N,P) of rows (N,P,C) to the nearest row of a bank (M,C)."""
    out = np.empty(queries.shape[:2], np.float32)
    norms = (bank**2).sum(1)
    for index, query in enumerate(queries):
        squared = (query**2).sum(1)[:, None] + norms - 2 * query @ bank.T
        out[index] = np.sqrt(np.maximum(squared.min(1), 0))
    return out


def patchcore(queries: F32, shots: F32) -> F32:
    """PatchCore with the whole memory (its coreset only saves time): (N,15,15)."""
    return nearest(queries, shots.reshape(-1, shots.shape[-1])).reshape(-1, GRID, GRID)


def spade(queries: F32, shots: F32, neighbours: int = 1) -> F32:
    """SPADE: the nearest shots by mean feature, then nearest patches among theirs alone."""
    centres, means = shots.mean(1), queries.mean(1)
    gaps = np.linalg.norm(means[:, None] - centres[None], axis=-1)
    grids = []
    for query, gap in zip(queries, gaps, strict=True):
        chosen = shots[np.argsort(gap, kind="stable")[:neighbours]]
        grids.append(nearest(query[None], chosen.reshape(-1, chosen.shape[-1]))[0])
    return np.stack(grids).reshape(-1, GRID, GRID)


def padim(queries: F32, shots: F32, dims: int = 64, seed: int = 42) -> F32:
    """PaDiM: Mahalanobis distance per place; flips of the shots feed the covariance."""
    keep = np.random.default_rng(seed).permutation(queries.shape[-1])[:dims]
    grid = shots[..., keep].reshape(len(shots), GRID, GRID, -1)
    flips = np.concatenate([grid, grid[:, ::-1], grid[:, :, ::-1], grid[:, ::-1, ::-1]])
    flat = flips.reshape(len(flips), GRID * GRID, -1)
    mean = flat.mean(0)
    centred = flat - mean
    # One place sees few samples: the covariance is shared by all places, regularised.
    pooled = np.einsum("npc,npd->cd", centred, centred) / max(1, centred.shape[0] * 225 - 1)
    inverse = np.linalg.inv(pooled + 0.01 * np.trace(pooled) / dims * np.eye(len(keep)))
    gap = queries[..., keep] - mean
    squared = np.einsum("npc,cd,npd->np", gap, inverse, gap)
    return np.sqrt(np.maximum(squared, 0)).astype(np.float32).reshape(-1, GRID, GRID)


def windows(queries: F32, shots: F32) -> F32:
    """WinCLIP-style: nearest windows of 1, 2 and 3 patches side, harmonic mean of similarities."""
    grids = []
    for side in (1, 2, 3):
        pooled = [_windowed(x, side) for x in (queries, shots)]
        query, bank = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
                       for x in pooled)  # fmt: skip
        grids.append(nearest(query, bank.reshape(-1, bank.shape[-1])))
    near = [np.maximum(1 - g**2 / 2, 1e-6) for g in grids]
    mean = 3 / np.sum([1 / n for n in near], axis=0)
    return np.asarray(1 - mean, np.float32).reshape(-1, GRID, GRID)


def _windowed(flat: F32, side: int) -> F32:
    grid = flat.reshape(len(flat), GRID, GRID, -1)
    return box(grid, side).reshape(flat.shape)


METHODS: dict[str, Callable[[F32, F32], F32]] = {
    "SPADE": spade,
    "PaDiM": padim,
    "windows (WinCLIP style)": windows,
}


def enlarge(grid: F32, size: int = 240) -> F32:
    """(N,15,15) to (N,240,240), bilinear with half-pixel centres."""
    return np.stack([cv2.resize(g, (size, size), interpolation=cv2.INTER_LINEAR) for g in grid])
