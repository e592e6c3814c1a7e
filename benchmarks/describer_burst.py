"""200 rejects in a burst: what words cost the verdicts, what is dropped, a kill in mid-sentence.

    python -m benchmarks.describer_burst [--rounds 3] [--parts 200] [--paced 15]

The real daemon with the real model, good parts under a limit of zero, so that each is a reject.
Runs with and without words take turns; a run begins to count when the describer is warm. After the
last run with words its process is killed while it speaks.
"""

import argparse
import json
import os
import signal
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Report, publish
from benchmarks.station import enrol, good_pictures, ms, settings_in
from station.daemon import Daemon, Options
from station.logs import set_up
from station.settings import Settings

DROPPED = "description_dropped"


def words_settings(settings: Settings, on: bool) -> Settings:
    """The same station with the describer as shipped, or without one."""
    described = settings.describe.model_copy(update={"backend": "auto", "enabled": on})
    path = settings.ledger.path.with_name(f"ledger-{time.monotonic_ns()}.db")
    ledger = settings.ledger.model_copy(update={"path": path})
    return settings.model_copy(update={"describe": described, "ledger": ledger})


def until(condition: Any, seconds: float = 60.0) -> float:
    """Seconds until a condition holds; TimeoutError when it never does."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise TimeoutError("the station did not get there")
        time.sleep(0.01)
    return time.monotonic() - begun


def resident(pid: int | None) -> float:
    """Resident memory of one process, MiB; 0 without one."""
    if pid is None:
        return 0.0
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def burst(settings: Settings, parts: int, *, words: bool, kill: bool = False) -> dict[str, Any]:
    """Latencies of `parts` rejects, memory before and after, and what became of their words."""
    daemon = Daemon(words_settings(settings, words), Options(threshold=0.0))
    daemon.start()
    try:
        service = daemon._describe
        if words:
            assert service is not None
            until(lambda: service.stats().described > 0)
            assert service.stats().source == "llm", service.stats().reason
        time.sleep(1.0)
        pids = (os.getpid(), service.pid if service and words else None)
        before, memory = daemon.after.totals(), [resident(pid) for pid in pids]
        peak = list(memory)

        def through() -> bool:
            peak[:] = [max(p, resident(pid)) for p, pid in zip(peak, pids, strict=True)]
            return daemon.after.totals().parts >= before.parts + parts

        until(through, 120)
        totals = daemon.after.totals()
        found: dict[str, Any] = {
            "memory": [p - m for p, m in zip(peak, memory, strict=True)],
            "resident": peak,
        }
        fresh = totals.parts - before.parts
        found["latency_us"] = list(totals.latencies_us[-fresh:])[:parts]
        found["seconds"] = (totals.last_ns - before.last_ns) / 1e9
        found |= kill_in_mid_sentence(daemon) if kill else {}
    finally:
        daemon.close()
    return found | ledger_says(daemon.settings.ledger.path)


def kill_in_mid_sentence(daemon: Daemon) -> dict[str, Any]:
    """Kill -9 of the describer while it speaks: seconds to the next description."""
    service = daemon._describe
    assert service is not None
    until(lambda: service._state.busy)
    time.sleep(0.2)
    pid, said = service.pid, service.stats().described
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    again = until(lambda: service.stats().described > said)
    return {"again_s": again, "restarts": service.stats().restarts}


def ledger_says(path: Path) -> dict[str, Any]:
    """From the ledger of the whole run, warm-up included: what became of the words of each reject.

    Every reject is in exactly one of: described, told in its own result that it gets no words,
    named in a later event; `untold` is what is left over and must be 0.
    """
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT seq, body FROM log_result ORDER BY seq").fetchall()
        words = database.execute("SELECT COUNT(DISTINCT trigger_id) FROM log_desc").fetchone()[0]
        events = [json.loads(b) for (b,) in database.execute("SELECT body FROM log_event")]
    seqs = [seq for seq, _ in rows]
    states = [json.loads(body)["desc_state"] for _, body in rows]
    asked = sum(state in {"queued", "dropped"} for state in states)
    named = sum(int(e["text"].split(" ", 1)[0]) for e in events if e["kind"] == DROPPED)
    named += sum(e["kind"] == "description_failed" for e in events)
    found = {"rejects": asked, "described": words, "told": states.count("dropped"), "named": named}
    left = asked - words - found["told"] - named
    return found | {"untold": left, "gaps": seqs != list(range(1, len(seqs) + 1))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parts", type=int, default=200)
    parser.add_argument("--paced", type=float, default=15.0)
    args = parser.parse_args()
    args.threads = args.workers = 0
    with tempfile.TemporaryDirectory(prefix="bench-words-") as folder:
        run(Path(folder), args)


def run(home: Path, args: argparse.Namespace) -> None:
    """Measure in turns and publish."""
    frames = home / "frames"
    what = good_pictures(frames, 200)
    enrol(home, frames, 0)
    speeds = {
        "as fast as it can": settings_in(home, frames, args),
        f"paced at {args.paced:g}/s": settings_in(home, frames, args, fps=args.paced),
    }
    set_up(next(iter(speeds.values())).log)
    rows, last, figures = [], {}, {}
    for name, settings in speeds.items():
        free = name.startswith("as fast")
        runs: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
        for number in range(args.rounds if free else 1):
            for words in (False, True) if number % 2 == 0 else (True, False):
                ends = words and not free
                runs[words].append(burst(settings, args.parts, words=words, kill=ends))
        for words in (False, True):
            latency = [us for r in runs[words] for us in r["latency_us"]]
            figures[name, words] = ms(latency, 0.5), ms(latency, 0.99)
            rows.append({
                "run": f"{name}, {'with' if words else 'without'} words", "parts": len(latency),
                "p50 ms": ms(latency, 0.5), "p99 ms": ms(latency, 0.99),
                "station +MiB": max(r["memory"][0] for r in runs[words]),
                "describer +MiB": max(r["memory"][1] for r in runs[words]),
                "describer MiB": max(r["resident"][1] for r in runs[words]),
            })  # fmt: skip
        last[name] = runs[True][-1]
    notes = [_note(name, figures[name, False], figures[name, True], last[name]) for name in speeds]
    killed = next(r for r in last.values() if "again_s" in r)
    notes += [
        f"parts: {what}, every one a reject",
        f"kill -9 of the describer while it speaks: next description after "
        f"{killed['again_s']:.1f} s, gap in the verdicts: {killed['gaps']}",
    ]
    shares = {n: [b / a for a, b in zip(figures[n, False], figures[n, True], strict=True)]
              for n in speeds}  # fmt: skip
    publish(
        Report(
            "describer_burst",
            "Words and verdicts: a burst of rejects",
            rows,
            notes,
            threads=0,
            figures={"shares": shares, "again_s": killed["again_s"]},
        )
    )


def _note(
    name: str, without: tuple[float, float], with_: tuple[float, float], run: dict[str, Any]
) -> str:
    return (
        f"{name}: p50 {with_[0] / without[0]:.2f}x, p99 {with_[1] / without[1]:.2f}x of without; "
        f"the whole run, {run['rejects']} rejects: {run['described']} described, {run['told']} "
        f"told in their own result that they get no words, {run['named']} named in a later event, "
        f"{run['untold']} untold"
    )


if __name__ == "__main__":
    main()
