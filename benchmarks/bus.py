"""What the ledger and the bus cost: commits per second, commit p50/p99, verdict published after the
engine's answer, round trip of a TRIGGER, the disk's own fsync in the same run.

    python -m benchmarks.bus [--parts 2000] [--rate 100] [--dir FOLDER]

The "engine" answers at once; a separate process triggers and listens, as on a line.
"""

import argparse
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import zmq

from benchmarks.common import Report, publish
from station.bus import Bus, BusConfig, TriggerReply
from station.ledger import Duplicate, Ledger
from station.schema import (
    EventDraft,
    Opening,
    Reason,
    ResultDraft,
    StatusFacts,
    Verdict,
    hex64,
    topic,
)
from station.schema_ctl import AdminCommand, Trigger


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50, p99 and the largest, in milliseconds."""
    ms = np.array(seconds) * 1e3
    return {
        "p50_ms": round(float(np.percentile(ms, 50)), 3),
        "p99_ms": round(float(np.percentile(ms, 99)), 3),
        "max_ms": round(float(ms.max()), 3),
    }


def fsync_times(folder: Path, count: int = 500) -> list[float]:
    """The disk's own time to append and sync 20 KiB, about what one commit writes."""
    times, block = [], os.urandom(20 * 1024)
    with (folder / "fsync").open("wb") as stream:
        for _ in range(count):
            stream.write(block)
            stream.flush()
            begin = time.perf_counter()
            os.fdatasync(stream.fileno())
            times.append(time.perf_counter() - begin)
    return times


def opening(trigger_id: str, received_ns: int | None = None, session: str | None = None) -> Opening:
    """A trigger as a daemon would open it."""
    return Opening(
        trigger_id=trigger_id,
        session=session,
        received_ns=received_ns or time.monotonic_ns(),
        deadline_ms=1000,
        t_trigger_us=time.time_ns() // 1000,
        threshold=0.5,
        recipe="bench",
    )


def ok(trigger_id: str) -> ResultDraft:
    """The verdict of an engine that is never in doubt."""
    return ResultDraft(
        trigger_id=trigger_id,
        verdict=Verdict.OK,
        reason=Reason.SCORE,
        score=0.1,
        threshold=0.5,
    )


class Instant:
    """A daemon whose engine answers at once; notes when it did."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.hb, self.answered = ledger, 0, {}

    def on_trigger(self, command: Trigger, reply: TriggerReply) -> None:
        def opened(future: object) -> None:
            part = future.result()
            if isinstance(part, Duplicate):
                reply.duplicate()
                return
            reply.accepted(part.part_id, part.attempt)
            self.answered[command.trigger_id] = time.monotonic_ns()
            self.ledger.commit_result(ok(command.trigger_id))

        self.ledger.open_part(
            opening(command.trigger_id, reply.received_ns, reply.session)
        ).add_done_callback(opened)

    def status(self) -> StatusFacts:
        self.hb += 1
        return StatusFacts(ready=True, busy=False, mode="triggered", hb=self.hb)

    def image(self, _: str) -> None:
        return None

    def on_admin(self, _: AdminCommand, reply: object) -> None:
        reply.done()


def ledger_figures(ledger: Ledger, parts: int) -> dict:
    """One part after the other (each waits for its fsyncs), then many at once."""
    single = []
    for number in range(parts):
        trigger_id = hex64(number)
        ledger.open_part(opening(trigger_id)).result()
        begin = time.perf_counter()
        ledger.commit_result(ok(trigger_id)).result()
        single.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    futures = [ledger.append("event", EventDraft(kind="bench")) for _ in range(parts * 5)]
    futures[-1].result()
    grouped = parts * 5 / (time.perf_counter() - begin)
    return {
        "commit": percentiles(single),
        "commits_per_s_alone": round(1 / float(np.mean(single))),
        "rows_per_s_grouped": round(grouped),
    }


LINE = """
import json, secrets, sys, time, zmq
ctl_address, pub_address = sys.argv[1:3]
count, rate = int(sys.argv[3]), float(sys.argv[4])
context = zmq.Context()
sub, ctl = context.socket(zmq.SUB), context.socket(zmq.DEALER)
sub.subscribe(sys.argv[5]); sub.connect(pub_address); ctl.connect(ctl_address)
ctl.send(json.dumps({"cmd": "HELLO", "rid": "h", "client": "bench"}).encode())
session = json.loads(ctl.recv())["session"]
time.sleep(0.3)
poller = zmq.Poller(); poller.register(sub, 1); poller.register(ctl, 1)
sent, heard, answered, boot = {}, {}, {}, secrets.token_hex(4)
begin, number = time.monotonic(), 0
while len(heard) < count and time.monotonic() < begin + count / rate + 20:
    due = begin + number / rate
    if number < count and time.monotonic() >= due:
        trigger = f"{boot}{number:08x}"
        sent[trigger] = time.monotonic_ns()
        ctl.send(json.dumps({"cmd": "TRIGGER", "rid": str(number), "session": session,
                             "trigger_id": trigger}).encode())
        number += 1
        continue
    wait = max(0, (due - time.monotonic()) * 1000) if number < count else 100
    for socket, _ in poller.poll(wait):
        frames, now = socket.recv_multipart(), time.monotonic_ns()
        body = json.loads(frames[-1])
        if "verdict" in body:
            (heard if socket is sub else answered)[body["trigger_id"]] = now
print(json.dumps({"sent": sent, "heard": heard, "answered": answered}))
"""


def bus_figures(ledger: Ledger, parts: int, rate: float) -> dict:
    """Published after the engine's answer, and the round trip, at a steady rate."""
    handler = Instant(ledger)
    config = BusConfig("bench", "st1", "tcp://127.0.0.1:*", "tcp://127.0.0.1:*")
    bus = Bus(config, ledger, handler)
    bus.start()
    try:
        name = topic("bench", "st1", "result").decode()
        addresses = [bus.ctl_address, bus.pub_address]
        line = subprocess.run(
            [sys.executable, "-c", LINE, *addresses, str(parts), str(rate), name],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        bus.stop()
    seen = json.loads(line.stdout)
    published = [(seen["heard"][t] - handler.answered[t]) / 1e9 for t in seen["heard"]]
    trip = [(seen["answered"][t] - seen["sent"][t]) / 1e9 for t in seen["answered"]]
    return {
        "parts": len(published),
        "rate_per_s": rate,
        "published_after_answer": percentiles(published),
        "trigger_to_result": percentiles(trip),
    }


def rows_of(figures: dict) -> list[dict]:
    """The table of RESULTS.md."""
    names = {
        "fsync": "fsync of 20 KiB on this disk (the floor)",
        "commit": "ledger: one verdict, handed in to durable",
        "published_after_answer": "verdict published after the engine's answer",
        "trigger_to_result": "TRIGGER to RESULT (two commits), seen by another process",
    }
    return [{"what": names[key], **figures[key]} for key in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--dir", type=Path, default=Path())
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        ledger = Ledger(Path(folder) / "ledger.db", line="bench", station="st1")
        before = fsync_times(Path(folder))
        figures = ledger_figures(ledger, options.parts)
        figures |= bus_figures(ledger, options.parts, options.rate)
        figures["fsync"] = percentiles(before + fsync_times(Path(folder)))
        ledger.close()
    notes = [
        f"{figures['commits_per_s_alone']} commits/s one after the other, "
        f"{figures['rows_per_s_grouped']} rows/s when many wait (group commit)",
        f"{figures['parts']} parts at {options.rate:g}/s, an engine that answers at once, pyzmq "
        f"{zmq.__version__}, SQLite {sqlite3.sqlite_version}, WAL, synchronous=FULL",
    ]
    title = "What a verdict costs after the engine: ledger and bus"
    publish(Report("bus", title, rows_of(figures), notes, threads=1, figures=figures))


if __name__ == "__main__":
    main()
