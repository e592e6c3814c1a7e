"""Multi-scale Self-prompted Memory Module (Section III-C, Eqs. 7-10): three matching modes."""

from typing import Literal

import torch
from torch import Tensor

from export.model.tddf import unit

Mode = Literal["position", "nearest", "bank"]
MODES: tuple[Mode, ...] = ("position", "nearest", "bank")
SNAP = 4e-6
"""Squared distances below this are rounding of a query that IS in memory: they count as 0."""
BLOCK = 4
"""References per block of the running minimum."""


def distance(squared: Tensor) -> Tensor:
    """Square root with the snap to zero; for training use `tddf.chord`."""
    return torch.where(squared < SNAP, torch.zeros_like(squared), squared.clamp(min=SNAP).sqrt())


def block_squared(query: Tensor, memory: Tensor, mode: Mode) -> Tensor:
    """One tap: unit query (B,225,D), unit memory (B,n,225,D) -> |q-m|^2 of the nearest patch.

    (B,n,225); in `bank` (B,1,225), the nearest of all n. The product only chooses the neighbour:
    of cosines near 1, summed in FP32, 2-2cos is wrong by up to 1.6e-6, the difference by .8e-6.
    """
    if mode == "position":
        return (memory - query[:, None]).square().sum(-1)
    memory = memory.flatten(1, 2)[:, None] if mode == "bank" else memory
    index = (memory @ query[:, None].transpose(2, 3)).argmax(2)  # (B,n,225)
    near = memory.gather(2, index[..., None].expand(-1, -1, -1, memory.shape[-1]))
    return (near - query[:, None]).square().sum(-1)


def match(
    taps: tuple[Tensor, ...], memory: tuple[Tensor, ...], mode: Mode, block: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """Distances (B,225,3) of the best reference and its index (B,), -1 in mode `bank`.

    taps: three of (B,225,D_s), any length; memory: three of (B,N,225,D_s) (already chosen by
    group), any length. N = 0 gives distance 2 everywhere (AM = 1: zero-shot). References are
    walked in blocks with a running minimum: memory stays bounded by `block`, time is linear in N.
    Ties go to the lowest index.
    """
    query = [unit(t) for t in taps]
    batch, patches = query[0].shape[:2]
    best = query[0].new_full((batch, patches, 3), 2.0)
    best_sum = query[0].new_full((batch,), float("inf"))
    best_index = torch.full((batch,), -1, dtype=torch.long, device=best.device)
    for start in range(0, memory[0].shape[1], block):
        squared = [
            block_squared(q, unit(m[:, start : start + block]), mode)
            for q, m in zip(query, memory, strict=True)
        ]
        d = distance(torch.stack(squared, -1))  # (B,n,225,3)
        if mode == "bank":
            best = torch.minimum(best, d.amin(1))
            continue
        total, index = d.sum((2, 3)).min(1)
        better = total < best_sum
        chosen = d[torch.arange(batch, device=d.device), index]
        best = torch.where(better[:, None, None], chosen, best)
        best_sum = torch.where(better, total, best_sum)
        best_index = torch.where(better, index + start, best_index)
    return best, best_index
