"""Every shipped detector on every CPU runtime of this machine, and what negotiation would pick.

python -m benchmarks.runtimes [--mode bank] [--threads 2] [--bundle nano]
"""

import argparse
from typing import Any

from benchmarks.common import Case, Report, bar_plot, measure, publish, ratio
from benchmarks.peers import detector
from engines.bundle import load_bundle
from engines.negotiate import MARGIN, candidates
from engines.selftest import self_test
from engines.session import runtimes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", default="bank", choices=("position", "nearest", "bank"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--bundle", default="nano")
    options = parser.parse_args()
    bundle, cases, errors = load_bundle(options.bundle), [], {}
    for entry, runtime in candidates(bundle, options.mode, runtimes()):
        fixed: dict[str, Any] = {"runtime": runtime, "precision": entry.precision}
        opened, _ = detector(bundle, options.mode, options.threads, **fixed)
        name = f"{entry.precision}, {runtime}"
        errors[name] = self_test(opened).max_error
        _, run = detector(bundle, options.mode, options.threads, **fixed)
        cases.append(Case(name, run))
    timings = measure(cases, options.rounds)
    base = timings.get("fp32, ort-cpu", next(iter(timings.values())))
    rows = [
        {
            "engine, runtime": name,
            "ms, median": t.median,
            "ms, best": t.best,
            "against fp32, ort-cpu": ratio(base, t),
            "largest error of the self-test": errors[name],
        }
        for name, t in timings.items()
    ]
    publish(
        Report(
            "runtimes",
            f"{bundle.manifest.preset}, mode {options.mode}, 4 references: engines and runtimes",
            rows,
            notes=[
                "All of these passed the gate or they would not be shipped. The station takes the "
                f"fastest; one that is less than {1 - MARGIN:.0%} ahead is not preferred.",
            ],
            threads=options.threads,
            figures={n: t.summary() for n, t in timings.items()},
            plot=bar_plot("runtimes", {n: t.median for n, t in timings.items()}, "ms per tile"),
        )
    )


if __name__ == "__main__":
    main()
