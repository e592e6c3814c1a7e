"""P1: every accepted trigger has exactly one verdict, whoever is killed and whenever.

A station (real ledger, real bus, an instant engine) and a gateway are separate processes; both are
killed with SIGKILL at random moments at 100 triggers a second. Afterwards the gateway's log, the
ledger and FETCH must tell the same story.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buskit import FastStation

from station.client import Client
from station.schema import parse

ROOT = Path(__file__).resolve().parents[2]

STATION = """
import sys, threading
from pathlib import Path
from buskit import FastStation
FastStation(Path(sys.argv[1]), ctl=sys.argv[2], pub=sys.argv[3], infer_s=0.004, in_flight=4)
print("up", flush=True)
threading.Event().wait()
"""

GATEWAY = """
import json, os, secrets, sys, time, zmq
ctl_address, log_path, rate = sys.argv[1], sys.argv[2], float(sys.argv[3])
log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def note(kind, text): os.write(log, (kind + " " + text + "\\n").encode())
boot, number, session = secrets.token_hex(4), 0, None
context = zmq.Context()
ctl = context.socket(zmq.DEALER)
ctl.setsockopt(zmq.RECONNECT_IVL, 20)
ctl.connect(ctl_address)
asked_at = 0.0
while True:
    if session is None and time.monotonic() > asked_at + 0.1:
        ctl.send(json.dumps({"cmd": "HELLO", "rid": "h", "client": "plc"}).encode())
        asked_at = time.monotonic()
    if session is not None:
        number += 1
        trigger = boot + f"{number:08x}"
        note("sent", trigger)
        ctl.send(json.dumps({"cmd": "TRIGGER", "rid": trigger, "session": session,
                             "trigger_id": trigger, "part_id": "P" + trigger}).encode())
    due = time.monotonic() + 1 / rate
    while (left := due - time.monotonic()) > 0:
        if not ctl.poll(max(1, int(left * 1000))):
            continue
        raw = ctl.recv()
        body = json.loads(raw)
        if "verdict" in body:
            note("result", raw.decode())
        elif body["reply"] == "hello":
            session = body["session"]
        elif body["reply"] == "hello_first":
            session = None
        else:
            note(body["reply"], body.get("trigger_id", ""))
"""


def start(script, *arguments):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
    )


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def run_line(folder, kills, seed=3):
    """Kill at random until `kills` processes are dead; the gateway's log lines."""
    ctl, pub = (f"tcp://127.0.0.1:{port}" for port in free_ports(2))
    log, chance = folder / "plc.log", random.Random(seed)

    def new_station():
        process = start(STATION, folder, ctl, pub)
        assert process.stdout.readline() == b"up\n"
        return process

    station, gateway = new_station(), start(GATEWAY, ctl, log, 100)
    try:
        for _ in range(kills):
            wait_for_parts(log, chance.randrange(10, 80))
            time.sleep(chance.uniform(0.0, 0.03))
            if chance.random() < 0.7:
                station.send_signal(signal.SIGKILL)
                station.wait()
                station = new_station()
            else:
                gateway.send_signal(signal.SIGKILL)
                gateway.wait()
                gateway = start(GATEWAY, ctl, log, 100)
        time.sleep(0.7)
    finally:
        for process in (gateway, station):
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
    return [line.partition(" ")[::2] for line in log.read_text().splitlines()]


def wait_for_parts(log, more, timeout_s=900.0):
    """Until the line has inspected so many parts more: a slow machine is killed later, not less
    (and a soak may be put to sleep while somebody else measures)."""
    have = log.read_bytes().count(b"\nresult ") if log.exists() else 0
    end = time.monotonic() + timeout_s
    while not log.exists() or log.read_bytes().count(b"\nresult ") < have + more:
        assert time.monotonic() < end, "the line stands still"
        time.sleep(0.02)


def compare(folder, lines):
    """The gateway's log against the ledger and FETCH; (accepted, answered, restart) counts."""
    station = FastStation(folder)
    try:
        with Client(station.bus.ctl_address) as client:
            fetched = list(client.fetch_all("result"))
    finally:
        station.stop()
    results = [parse(body) for body in fetched]
    assert [r.seq for r in results] == list(range(1, len(results) + 1)), "a gap, or out of order"
    assert len({r.epoch for r in results}) == 1
    by_trigger = {r.trigger_id: body for r, body in zip(results, fetched, strict=True)}
    assert len(by_trigger) == len(results), "two verdicts for one trigger"
    sent = {text for kind, text in lines if kind == "sent"}
    accepted = [text for kind, text in lines if kind == "accepted"]
    answered = [text.encode() for kind, text in lines if kind == "result"]
    assert len(accepted) == len(set(accepted)) and set(accepted) <= sent
    assert set(accepted) <= set(by_trigger), "an accepted trigger without a verdict"
    for body in answered:
        assert by_trigger[parse(body).trigger_id] == body, "the gateway was told something else"
    triggers = [json.loads(body)["trigger_id"] for body in answered]
    assert len(triggers) == len(set(triggers)), "a verdict was told twice"
    assert set(by_trigger) <= sent
    restarts = sum(r.reason == "restart" for r in results)
    assert all(r.accept or r.reason in ("restart", "deadline") for r in results)
    return len(accepted), len(answered), restarts


def kill_and_compare(folder, kills, figure):
    lines = run_line(folder, kills)
    accepted, answered, restarts = compare(folder, lines)
    figure(
        "P1",
        f"ledger, bus and gateway: {kills} kills at 100 triggers/s: {accepted} accepted, "
        f"{answered} answered, {restarts} ERROR/restart, none lost or doubled",
    )
    assert answered >= 10 * kills and answered >= accepted * 0.8


def test_3_kills_and_every_accepted_trigger_has_one_verdict(tmp_path, figure):
    kill_and_compare(tmp_path, 3, figure)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_30_kills_and_every_accepted_trigger_has_one_verdict(tmp_path, figure):
    kill_and_compare(tmp_path, 30, figure)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_1000_kills_and_every_accepted_trigger_has_one_verdict(tmp_path, figure):
    kill_and_compare(tmp_path, 1000, figure)
