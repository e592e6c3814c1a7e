"""The figures of the promises P1-P12: told by the tests that prove them, kept, and made a table.

A test asks for the fixture `figure` and says `figure("P4", "busy p99 0.96 ms")`. The figures of
each test's last run are kept in build/promises.jsonl, with how it ended; `make promises`
(`python tests/promises.py`) writes docs/promises.md from them.
"""

import json
import os
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "build" / "promises.jsonl"
PAGE = ROOT / "docs" / "promises.md"
PROMISES = {
    "P1": "every accepted trigger has one verdict; none lost, doubled or re-ordered",
    "P2": "what was acknowledged or published survives power loss",
    "P3": "no fault ever yields OK",
    "P4": "late is never acted on; excess triggers are answered busy within 5 ms; a verdict is "
    "published within 1.5 ms and the disk's own p99 fsync of the engine's answer",
    "P5": "a stall shows as READY=0 within max(3 periods, 250 ms); verdicts again within 10 s",
    "P6": "a consumer that was away gets all it missed",
    "P7": "replay is deterministic",
    "P8": "a killed recording opens",
    "P9": "it runs for ever: memory, descriptors, threads and log are flat",
    "P10": "strangers can do nothing",
    "P11": "the fail-safe code is tested: mutation score at least 95 %",
    "P12": "it starts: first heartbeat < 2 s, READY < 30 s with cached engines",
}
HEAD = """# The promises and their last figures

Written by `make promises` from what the tests told when they last ran (`make test-slow`,
`make nightly`); each test fails if its promise is untrue. Load is the machine's load average when
the test ended: above the number of cores, milliseconds prove little.

| promise | test | last figure | seen |
|---|---|---|---|
"""


def keep(test: str, told: list[tuple[str, str]], *, passed: bool) -> None:
    """Append what one test told; `test` is its node id."""
    KEPT.parent.mkdir(exist_ok=True)
    common = {
        "test": test,
        "passed": passed,
        "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        "commit": _commit(),
        "load": f"{os.getloadavg()[0]:.1f} of {os.cpu_count()} cores",
    }
    rows = [json.dumps({"promise": promise, "figure": text, **common}) for promise, text in told]
    with KEPT.open("a") as file:
        file.write("".join(row + "\n" for row in rows))


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def newest(rows: list[dict]) -> list[dict]:
    """The rows of each test's last run, in the order of the promises."""
    last: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        key = (row["promise"], row["test"])
        if key in last and last[key][0]["at"] != row["at"]:
            del last[key]
        last.setdefault(key, []).append(row)
    order = list(PROMISES)
    found = [row for kept in last.values() for row in kept]
    return sorted(found, key=lambda row: (order.index(row["promise"]), row["test"]))


def table(rows: list[dict]) -> str:
    """The page as Markdown. A promise nobody has told a figure of says so."""
    lines, told = [], set()
    for row in newest(rows):
        name = row["promise"]
        first = f"**{name}** {PROMISES[name]}" if name not in told else ""
        told.add(name)
        path, _, test = row["test"].partition("::")
        figure = row["figure"] if row["passed"] else f"**FAILED**: {row['figure']}"
        seen = f"{row['at'][:16]}, {row['commit']}, load {row['load']}"
        lines.append(f"| {first} | `{Path(path).name}` {test} | {figure} | {seen} |")
    silent = [
        f"| **{name}** {text} | | no figure yet | |"
        for name, text in PROMISES.items()
        if name not in told
    ]
    return HEAD + "\n".join(lines + silent) + "\n"


def main() -> None:
    """Write docs/promises.md."""
    rows = [json.loads(line) for line in KEPT.read_text().splitlines()] if KEPT.exists() else []
    PAGE.write_text(table(rows))
    print(f"{PAGE.relative_to(ROOT)}: {len(newest(rows))} figures of {len(PROMISES)} promises")


if __name__ == "__main__":
    main()
