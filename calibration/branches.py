"""`python -m calibration.branches`: the paper's Table VII with trained weights, nothing retrained.

The local branch of the tapped blocks is exchanged (`enhanced`, `accumulated`, `maskclip`, `clip`)
and the validation split judged at zero and one shot. In PyTorch, from cached stem features, at
60 px. `local a` is the tap from the stem (no branch), present where the weights have it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

from calibration.corpus import CorpusSpec, build_corpus
from calibration.datasets import NOUNS, named_sets
from calibration.entry import run_command, write_json
from calibration.stage_text import ensemble_anchors
from calibration.stage_vision import answers
from calibration.training import figures_of, good_parts, memory_of
from export.model import SpgddGpt
from export.model.config import Branch
from export.model.weights import load_weights


def with_branch(model: SpgddGpt, branch: Branch) -> SpgddGpt:
    """The same weights, another local branch."""
    vision = replace(model.config.vision, branch=branch)
    made = SpgddGpt(replace(model.config, vision=vision))
    made.load_state_dict(model.state_dict())
    return made.eval()


def main(argv: Sequence[str] | None = None) -> None:
    """Judge every branch on every set."""
    parser = argparse.ArgumentParser(prog="python -m calibration.branches", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    trained = load_weights(args.weights)
    found: dict[str, Any] = {}
    for name, folder in named_sets(args.data).items():
        spec = CorpusSpec((str(folder),), "val", variants=0, made_per_normal=0, kinds=0)
        held = build_corpus(spec, args.cache, trained)
        shots = build_corpus(replace(spec, split="train"), args.cache, trained)
        for branch in get_args(Branch):
            model = with_branch(trained, branch)
            anchors = ensemble_anchors(model, NOUNS.get(name, "object"))
            memory = memory_of(model, good_parts(shots, name, step=1), count=1)
            row: dict[str, float] = {}
            for count, bank in ((0, None), (1, memory)):
                row |= figures_of(f"{count}", held, answers(model, anchors, held, bank))
            found.setdefault(name, {})[branch] = row
            print(name, branch, {k: round(v, 1) for k, v in row.items()}, flush=True)
    write_json(args.json, found)


if __name__ == "__main__":
    run_command(main)
