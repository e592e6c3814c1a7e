"""`python -m calibration.promise`: does the false-reject rate an enrolment states hold?

Twenty enrolments over good parts that training never saw, one picture per spot: shots into memory,
held-out parts into the conformal threshold, and the rest as fresh parts whose false-reject rate
must lie inside the stated 95 % beta-binomial interval (at least 17 times of 20).
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calibration.datasets import SEED, Sample
from calibration.engine_run import EngineRun, load_labelled
from calibration.entry import run_command, write_json
from calibration.evaluate import open_set, say
from calibration.thresholds import conformal_threshold, reject_interval
from engines.bundle import load_bundle
from engines.errors import SourceError, UsageError
from engines.text import TextEncoder


@dataclass(frozen=True)
class Enrolment:
    """One of the twenty: rates are fractions of `fresh` parts."""

    held_out: int
    fresh: int
    threshold: float
    rate: float
    low: float
    high: float

    @property
    def held(self) -> bool:
        """Whether the measured rate lies inside what was stated."""
        return self.low <= self.rate <= self.high


def distinct_parts(samples: Sequence[Sample]) -> list[Sample]:
    """One picture per spot, the first by path."""
    first: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda s: s.image):
        first.setdefault(sample.spot, sample)
    return list(first.values())


def enrolments(
    name: str, run: EngineRun, count: int, shots: int, alpha: float, split: str = "val"
) -> list[Enrolment]:
    """`count` random enrolments over the distinct good parts of a split.

    SourceError when they are too few: besides the shots one to hold out and a fresh one.
    """
    dataset = open_set(name)
    parts = distinct_parts(dataset.of(split, normal=True))
    if len(parts) < shots + 2:
        raise SourceError(
            f"{dataset.name} has {len(parts)} distinct good parts in its split {split}, "
            f"{shots} shots need at least {shots + 2}: give fewer --shots or another set"
        )
    encoded = run.encode(load_labelled(parts).tiles)
    anchors = TextEncoder.open(run.bundle).anchors(dataset.noun)
    held = (len(parts) - shots) // 2
    done = []
    for index in range(count):
        order = np.random.default_rng([SEED, 77, index]).permutation(len(parts)).tolist()
        memory, text = run.learn(encoded.rows(order[:shots]), anchors)
        rest = run.detect(encoded.rows(order[shots:]), text, memory, "bank").scores
        threshold = conformal_threshold(rest[:held].tolist(), alpha)
        fresh = rest[held:]
        low, high = reject_interval(threshold.n, threshold.k, len(fresh))
        rate = float((fresh > threshold.value).mean())
        done.append(Enrolment(held, len(fresh), threshold.value, rate, low, high))
    inside = sum(e.held for e in done)
    mean = 100 * float(np.mean([e.rate for e in done]))
    say(
        f"{dataset.name}: {len(parts)} distinct good parts, {shots} shots, {held} held out, "
        f"{done[0].fresh} fresh: inside {inside}/{count}, mean {mean:.1f} %"
    )
    return done


def main(argv: Sequence[str] | None = None) -> None:
    """Run for every set; the JSON holds every enrolment."""
    parser = argparse.ArgumentParser(prog="python -m calibration.promise", description=__doc__)
    parser.add_argument("--bundle", default="nano")
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.count < 1 or args.shots < 1 or not 0 < args.alpha < 1:
        raise UsageError("--count and --shots must be at least 1, --alpha between 0 and 1")
    run = EngineRun(load_bundle(args.bundle), args.threads)
    found = {n: enrolments(n, run, args.count, args.shots, args.alpha) for n in args.data}
    if args.json:
        body = {
            n: {"inside": sum(e.held for e in es), "of": len(es), "each": [asdict(e) for e in es]}
            for n, es in found.items()
        }
        write_json(args.json, body)


if __name__ == "__main__":
    run_command(main)
