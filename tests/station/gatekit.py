"""A scripted station for gateway tests: the real ledger and bus around a fast test engine.

What a part is follows from its part id alone (`truth`), so that any client can check any verdict
without having seen the station. Run as a program it is a station that can be killed.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

from station.bus import Bus, BusConfig
from station.ledger import Ledger
from station.ledger_types import Duplicate
from station.schema import Opening, Reason, ResultDraft, StatusFacts, Verdict

GATEKIT = Path(__file__).resolve()
ROOT = GATEKIT.parents[2]
DEADLINE_MS = 1000


def truth(part_id: str) -> str:
    """The verdict this station gives: half OK, a quarter NG, the rest UNDECIDED and ERROR."""
    return ("OK", "OK", "OK", "OK", "NG", "NG", "UNDECIDED", "ERROR")[
        zlib.crc32(part_id.encode()) % 8
    ]


def draft(trigger_id: str, part_id: str) -> ResultDraft:
    verdict = Verdict(truth(part_id))
    score = {Verdict.OK: 0.25, Verdict.NG: 1.5}.get(verdict)
    reason = {Verdict.UNDECIDED: Reason.IMPLAUSIBLE_FRAME, Verdict.ERROR: Reason.CAMERA}
    return ResultDraft(
        trigger_id=trigger_id,
        verdict=verdict,
        reason=reason.get(verdict, Reason.SCORE),
        score=score,
        threshold=0.5,
    )


class ScriptedStation:
    """In-process station; `ready`, `silent` (accept but never judge) and `hold` can be changed."""

    def __init__(
        self,
        path,
        *,
        line="l1",
        name="s1",
        pub="tcp://127.0.0.1:*",
        ctl="tcp://127.0.0.1:*",
        work_s=0.0,
        keys=None,
        simulated=False,
    ):
        self.ready, self.silent, self.frozen, self.work_s = True, False, False, work_s
        self.simulated = simulated
        self.slowest_s = 0.0  # the longest that the disk took for one row
        self.ledger = Ledger(Path(path), line=line, station=name)
        self.bus = Bus(
            BusConfig(line=line, station=name, pub=pub, ctl=ctl, keys=keys), self.ledger, self
        )
        self._slot = threading.Semaphore(1)  # one part in flight, as the daemon's default
        self._hb = 0
        self._queue = queue.SimpleQueue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()
        self.bus.start()

    @property
    def ctl(self):
        return self.bus.ctl_address

    @property
    def pub(self):
        return self.bus.pub_address

    def on_trigger(self, command, reply):
        if not self.ready:
            return reply.not_ready("scripted")
        if not self._slot.acquire(blocking=False):
            return reply.busy()
        opening = Opening(
            trigger_id=command.trigger_id,
            part_id=command.part_id,
            session=reply.session,
            received_ns=reply.received_ns,
            deadline_ms=command.deadline_ms or DEADLINE_MS,
            t_trigger_us=time.time_ns() // 1000,
            simulated=self.simulated,
            threshold=0.5,
        )
        begun = time.monotonic()
        self.ledger.open_part(opening).add_done_callback(lambda f: self._opened(f, reply, begun))
        return None

    def _opened(self, future, reply, begun):
        self._durable(begun)
        part = future.result()
        if isinstance(part, Duplicate):
            self._slot.release()
            reply.duplicate()
        else:
            reply.accepted(part.part_id, part.attempt)
            self._queue.put(part)

    def _work(self):
        while (part := self._queue.get()) is not None:
            if self.silent:
                self._slot.release()
                continue
            time.sleep(self.work_s)
            self._slot.release()  # as the daemon: free before the answer leaves
            begun = time.monotonic()
            done = self.ledger.commit_result(draft(part.trigger_id, part.part_id))
            done.add_done_callback(lambda _, begun=begun: self._durable(begun))

    def _durable(self, begun):
        self.slowest_s = max(self.slowest_s, time.monotonic() - begun)

    @property
    def disk_stalled(self):
        """Whether a commit took longer than a part may: then a refusal is the right answer."""
        return self.slowest_s > DEADLINE_MS / 1000

    def status(self):
        self._hb += 0 if self.frozen else 1
        return StatusFacts(ready=self.ready, busy=False, mode="triggered", hb=self._hb)

    def image(self, ref):
        return None

    def on_admin(self, command, reply):
        reply.refused("scripted")

    def close(self):
        self._queue.put(None)
        self._worker.join(2)
        self.bus.stop()
        self.ledger.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Program:
    """A program of ours as a process that can be killed and started again with the same words."""

    def __init__(self, *words, log=None):
        self.words, self.log = [sys.executable, *map(str, words)], log
        self.process = None
        self.start()

    def start(self):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        with Path(self.log or os.devnull).open("ab") as out:
            self.process = subprocess.Popen(self.words, cwd=ROOT, env=env, stdout=out, stderr=out)

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        return self.process.wait(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait(10)


def gateway_words(station, port, folder):
    """The command line of a Modbus gateway for `station` (its ctl and pub); needs station.toml."""
    return (
        *("-m", "station.cli", "gateway", "modbus", "--config", folder / "station.toml"),
        *("--port", port, "--ctl", station.ctl, "--pub", station.pub),
    )


PAUSE_S = 5.0  # a round that took longer: this process was stopped so that others can measure


def wait_for(true, timeout_s=60.0, step_s=0.01):
    left, begun = timeout_s, time.monotonic()
    while not (value := true()):
        if left < 0:
            raise AssertionError(f"did not happen within {timeout_s} s")
        time.sleep(step_s)
        took, begun = time.monotonic() - begun, time.monotonic()
        left -= min(took, PAUSE_S)
    return value


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--options", default="{}")
    args = parser.parse_args()
    station = ScriptedStation(args.path, **json.loads(args.options))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    station.close()


if __name__ == "__main__":
    main()
