"""P1: kill -9 at random moments; every accepted trigger has exactly one verdict afterwards."""

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq
from faultkit.station import parts_folder

ROOT = Path(__file__).resolve().parents[2]
RATE = 80  # triggers a second


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Plc:
    """A PLC of pyzmq and json: triggers at a rate, notes what was accepted and what came back."""

    def __init__(self, ctl: int, rate: float = RATE) -> None:
        self.rate = rate
        self.context = zmq.Context()
        self.address = f"tcp://127.0.0.1:{ctl}"
        self.accepted: set[str] = set()
        self.results: dict[str, list[bytes]] = {}
        self.sent: dict[str, str] = {}
        self.busy = 0
        self.rid = 0
        self.connect()

    def connect(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close(0)
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(self.address)
        self.session = None

    def send(self, **command) -> str:
        self.rid += 1
        if self.session:
            command["session"] = self.session
        self.socket.send(json.dumps({"rid": str(self.rid), **command}).encode())
        return str(self.rid)

    def hello(self, timeout_s: float = 20) -> bool:
        for _ in range(int(2 * timeout_s)):  # rounds, not seconds: a soak may be stopped meanwhile
            self.connect()
            self.send(cmd="HELLO", client="plc")
            if self.socket.poll(500):
                answer = json.loads(self.socket.recv_multipart()[0])
                if answer.get("reply") == "hello":
                    self.session = answer["session"]
                    return True
        return False

    def run(self, seconds: float) -> None:
        end = due = time.monotonic()
        end += seconds
        while time.monotonic() < end:
            if (now := time.monotonic()) >= due:
                # What a stopped PLC missed it does not make up for in one burst.
                due = max(due + 1 / self.rate, now - 0.5)
                trigger_id = secrets.token_hex(8)
                self.sent[self.send(cmd="TRIGGER", trigger_id=trigger_id)] = trigger_id
            self.listen(max(0.0, min(due, end) - time.monotonic()))

    def listen(self, seconds: float) -> None:
        if not self.socket.poll(int(seconds * 1000)):
            return
        frames = self.socket.recv_multipart()
        body = json.loads(frames[0])
        if body.get("stream") == "result":
            self.results.setdefault(body["trigger_id"], []).append(frames[0])
        elif body.get("reply") == "accepted":
            self.accepted.add(self.sent[body["rid"]])
        elif body.get("reply") == "busy":
            self.busy += 1

    def fetch_all(self) -> list[bytes]:
        self.send(cmd="STATUS")
        self.socket.poll(5000)
        epoch = json.loads(self._answer("status")[-1])["epoch"]
        found: list[bytes] = []
        while True:
            self.send(cmd="FETCH", stream="result", epoch=epoch, from_seq=len(found) + 1, max=200)
            head, *bodies = self._answer("page")
            found += bodies
            if json.loads(head)["end"]:
                return found

    def _answer(self, kind: str) -> list[bytes]:
        while self.socket.poll(10_000):
            frames = self.socket.recv_multipart()
            if json.loads(frames[0]).get("reply") == kind:
                return frames
        raise AssertionError(f"no {kind}")


def start(folder: Path, pub: int, ctl: int) -> subprocess.Popen[bytes]:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-m", "faultkit.fast_station", str(folder), str(pub), str(ctl)]
    return subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "kills",
    [
        3,
        pytest.param(30, marks=pytest.mark.slow),
        pytest.param(1000, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)]),
    ],
)
def test_after_kill_9_every_accepted_trigger_has_exactly_one_verdict(tmp_path, kills, figure):
    parts_folder(tmp_path / "in", 8)
    pub, ctl = free_port(), free_port()
    plc, rng = Plc(ctl), random.Random(kills)
    process = start(tmp_path, pub, ctl)
    try:
        for _ in range(kills):
            assert plc.hello(), "the station did not come up"
            plc.run(rng.uniform(0.6, 1.6))
            process.send_signal(signal.SIGKILL)
            process.wait()
            plc.listen(0)
            process = start(tmp_path, pub, ctl)
        assert plc.hello()
        plc.run(1.0)
        for _ in range(100):
            plc.listen(0.02)
        stored = plc.fetch_all()
    finally:
        process.terminate()
        process.wait(10)
    by_trigger: dict[str, list[bytes]] = {}
    for body in stored:
        by_trigger.setdefault(json.loads(body)["trigger_id"], []).append(body)
    assert [json.loads(b)["seq"] for b in stored] == list(range(1, len(stored) + 1))
    assert all(len(bodies) == 1 for bodies in by_trigger.values()), "a trigger has two verdicts"
    assert plc.accepted <= set(by_trigger), "an accepted trigger has no verdict"
    for trigger_id, bodies in plc.results.items():
        assert bodies == by_trigger[trigger_id], "the PLC was told something else"
    restarted = sum(json.loads(b)["reason"] == "restart" for b in stored)
    figure("P1", f"station: {kills} kills at {RATE} triggers/s: {len(plc.accepted)} accepted, "
           f"each one verdict ({restarted} ERROR/restart)")  # fmt: skip
    assert len(plc.accepted) > 20 * kills
