"""`python -m calibration.train`: the nano weights from the train splits, one command.

1. corpus: every picture through the frozen stem once, features cached;
2. vision: transformer, TDDF and head with the projection held, then the text tower to the anchors;
3. vision again, projection free, against the text anchors;
4. tap a, the head's trust and the score's weight for kinds never seen (`calibration.finish`).

The prefix (stage d) is `calibration.prefix`. The same command goes on where it was broken off
(OUT/held/state.pt, OUT/text.pt, OUT/free/state.pt, OUT/local.pt); OUT refuses a run with other
settings, sets or start weights. Figures in OUT/metrics.jsonl, a plot in OUT/plot.png. `--quick`
takes fewer steps. `--device cuda --bf16` puts the vision steps on a GPU: written, and run with
`--device cpu --bf16` only, for want of a GPU.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration.corpus import Corpus, CorpusSpec, build_corpus
from calibration.datasets import left_out, named_sets
from calibration.entry import run_command
from calibration.finish import finish
from calibration.resume import digest, keep, take_up
from calibration.stage_text import TextSettings, train_text
from calibration.stage_vision import (
    Sampler,
    VisionSettings,
    VisionTrainer,
    answers,
    start_from_stem,
    start_head,
)
from calibration.training import (
    TAPS,
    Held,
    Log,
    draw_plot,
    figures_of,
    held_sets,
    known_anchors,
    memory_of,
    start_model,
)
from engines.errors import UsageError
from export.model import SpgddGpt
from export.model.tddf import unit
from export.model.weights import save_weights

__all__ = ["TAPS", "Log", "train_vision"]
STEPS = (600, 1080)
QUICK = (600, 480)


def identity(settings: VisionSettings, corpus: Corpus, val: Held, start: str) -> dict[str, Any]:
    """Whose the state of a vision stage is; another device may go on with it."""
    own = {k: v for k, v in asdict(settings).items() if k != "device"}
    return {
        "settings": own,
        "data sets": [corpus.key, {name: held.key for name, (_, held) in val.items()}],
        "sets left out": sorted(corpus.by_kind),
        "start weights": start,
    }


def train_vision(
    model: SpgddGpt,
    corpus: Corpus,
    val: Held,
    settings: VisionSettings,
    out: Path,
    log: Log,
    every: int = 150,
    anchors: Tensor | None = None,
    start: str = "",
) -> Tensor:
    """Train in place and leave the best averaged weights (by validation); anchors (2,E).

    `anchors` given: go on from a trained model whose text tower already speaks these; `start` says
    which. UsageError when `out` holds the state of another run.
    """
    state_file, of = out / "state.pt", identity(settings, corpus, val, start)
    left = take_up(state_file, of)
    sampler = Sampler(corpus, settings)
    probe = np.sort(sampler.rng.permutation(corpus.rows())[:600])
    if anchors is None:
        start_from_stem(model, corpus.features[probe])
        start_head(model)
    trainer = VisionTrainer(model, settings, anchors)
    weights = trainer.trainable()
    optimiser = torch.optim.AdamW(trainer.groups(), settings.lr, weight_decay=settings.weight_decay)
    plan = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _schedule(s, settings))
    average = [p.detach().clone() for p in weights]
    best: dict[str, Any] = {"value": -1.0}
    first = 0
    if left is not None:
        first = _resume(left, trainer, optimiser, plan, average, best, sampler)
        log(f"vision: resumed at step {first}")
    sums: dict[str, float] = {}
    for step in range(first, settings.steps):
        batch, shots = sampler.draw()
        terms = trainer.loss(batch, shots, sampler.rng)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        trainer.hold_values()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        plan.step()
        decay = min(settings.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, now in zip(average, weights, strict=True):
                kept.lerp_(now, 1 - decay)
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.detach()) / 50
        if (step + 1) % 50 == 0:
            log(f"vision step {step + 1}/{settings.steps}", **sums)
            sums = {}
        if (step + 1) % every == 0 or step + 1 == settings.steps:
            _validate(trainer, weights, average, val, best, log, step + 1)
            keep(state_file, of, _state(trainer, optimiser, plan, average, best, sampler, step + 1))
    with torch.no_grad():
        for now, kept in zip(weights, best["weights"], strict=True):
            now.copy_(kept)
    model.cpu()
    return unit(trainer.anchors.detach()).cpu()


def _schedule(step: int, settings: VisionSettings) -> float:
    warm = max(1, int(settings.warmup * settings.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, settings.steps - warm)))) + 0.01


def _validate(
    trainer: VisionTrainer,
    weights: list[Any],
    average: list[Tensor],
    val: Held,
    best: dict[str, Any],
    log: Log,
    step: int,
) -> None:
    """Figures of the averaged weights; they are kept when they are the best so far."""
    live = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for now, kept in zip(weights, average, strict=True):
            now.copy_(kept)
    figures: dict[str, float] = {}
    anchors = unit(trainer.anchors.detach())
    for name, (shots, corpus) in val.items():
        memory = memory_of(trainer.model, shots)
        for k, bank in ((0, None), (1, [m[:1] for m in memory])):
            figures |= figures_of(
                f"{name}/{k}", corpus, answers(trainer.model, anchors, corpus, bank)
            )
    chosen = [v for k, v in figures.items() if not k.endswith("cls")]
    # Without a validation set the latest average is the one to keep.
    value = float(np.mean(chosen)) if chosen else float(step)
    log(f"validation at {step}", mean=value, **figures)
    if value > best["value"]:
        best |= {"value": value, "step": step, "weights": [p.detach().clone() for p in weights]}
    with torch.no_grad():
        for now, kept in zip(weights, live, strict=True):
            now.copy_(kept)
    trainer.model.train()


def _state(trainer: VisionTrainer, *rest: Any) -> dict[str, Any]:
    optimiser, plan, average, best, sampler, step = rest
    return {
        "weights": [p.detach() for p in trainer.trainable()],
        "optimiser": optimiser.state_dict(),
        "plan": plan.state_dict(),
        "average": average,
        "best": best,
        "rng": sampler.rng.bit_generator.state,
        "step": step,
    }


def _resume(state: dict[str, Any], trainer: VisionTrainer, *rest: Any) -> int:
    optimiser, plan, average, best, sampler = rest
    with torch.no_grad():
        for now, kept in zip(trainer.trainable(), state["weights"], strict=True):
            now.copy_(kept)
        for mean, kept in zip(average, state["average"], strict=True):
            mean.copy_(kept)
    optimiser.load_state_dict(state["optimiser"])
    plan.load_state_dict(state["plan"])
    best |= state["best"]
    sampler.rng.bit_generator.state = state["rng"]
    return int(state["step"])


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; UsageError for numbers that make no training."""
    parser = argparse.ArgumentParser(
        prog="python -m calibration.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders to train on")
    parser.add_argument("--out", type=Path, default=Path("build/train"))
    parser.add_argument("--cache", type=Path, default=Path("build/corpus"))
    parser.add_argument("--weights", type=Path, help="where to write the weights file")
    parser.add_argument("--quick", action="store_true", help=f"steps {QUICK} instead of {STEPS}")
    parser.add_argument("--steps", type=int, nargs=2, help="of the two vision stages")
    parser.add_argument("--leave-out", nargs="*", default=[], help="sets of --data never looked at")
    parser.add_argument("--start", type=Path, help="weights to go on from (only stages 3 and 4)")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--real-share", type=float, default=0.72, help="of batches, in stage 3")
    parser.add_argument("--focus", type=float, default=0.72, help="of the second real set, stage 3")
    parser.add_argument("--kinds", type=int, default=96, help="procedural kinds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bf16", action="store_true", help="autocast the vision steps")
    parser.add_argument("--paper-literal", action="store_true", help="Eq. 4 as printed")
    args = parser.parse_args(argv)
    args.steps = args.steps or (QUICK if args.quick else STEPS)
    if min(*args.steps, args.kinds, args.threads) < 1:
        raise UsageError("--steps, --kinds and --threads must be at least 1")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no GPU that torch can use is here: leave it out")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run all stages."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    sets = named_sets(args.data)
    gone = left_out(args.leave_out, sets)
    log = Log(args.out)
    model, known = start_model(args.start)
    corpus = build_corpus(
        CorpusSpec(tuple(map(str, args.data)), kinds=args.kinds), args.cache, model.eval(), log
    )
    seen = {name: folder for name, folder in sets.items() if name not in gone}
    val = held_sets(seen, corpus, args.cache, model, log)
    corpus.leave_out(gone)
    held_back = VisionSettings(
        steps=args.steps[0], lr=args.lr, paper_literal=args.paper_literal,
        device=args.device, bf16=args.bf16,
    )  # fmt: skip
    if known is None:
        anchors = train_vision(model, corpus, val, held_back, args.out / "held", log)
        start = f"stage 2 {digest(identity(held_back, corpus, val, ''))}"
        for row in train_text(model, anchors, corpus, TextSettings(), args.out / "text.pt"):
            log("text", **row)
        known = known_anchors(model)
    else:
        start = digest(args.start)
    free = replace(
        held_back, steps=args.steps[1], real_share=args.real_share, focus=args.focus,
        free_projection=True,
    )  # fmt: skip
    train_vision(model, corpus, val, free, args.out / "free", log, anchors=known, start=start)
    model = finish(model, known, corpus, val, args.out, log)
    write_weights(model, args, list(seen), log)
    draw_plot(args.out / "metrics.jsonl", args.out / "plot.png")


def write_weights(
    model: SpgddGpt, args: argparse.Namespace, names: Sequence[str], log: Log
) -> None:
    """The weights file, with a sentence saying what it is; names of the sets trained on."""
    path = args.weights or args.out / "nano.safetensors"
    sets = " and ".join(names)
    steps = f"{args.steps[1]} steps on from {args.start}" if args.start else f"{args.steps} steps"
    trained = (
        f"trained {steps} on the train splits of {sets}, made defects and {args.kinds} procedural "
        "kinds; tap a on procedural kinds alone; stem from ImageNet, frozen; prefix untrained"
    )
    save_weights(model.eval(), path, trained=trained)
    log(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): {trained}")


if __name__ == "__main__":
    run_command(main)
