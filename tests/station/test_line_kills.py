"""P1: station, children and gateway are killed at random while a line runs; nobody lies.

The PLC's log, the ledger (by FETCH and from its file) and the recording agree, every accepted
trigger has exactly one verdict, seq has no gap, and not one part passed that was not OK.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from faultkit.camera import FaultCamera

from station.client import Client
from station.ledger import Ledger
from station.record_read import open_reader
from station.schema import Result
from tests.station.gatekit import ROOT, Program, free_port, gateway_words, wait_for
from tests.station.linekit import LINEKIT, children, sections


class Line:
    """Camera, station, gateway and PLC of one run in `folder`."""

    def __init__(self, folder, camera, by):
        self.folder, self.by = folder, by
        self.ctl_port, self.pub_port, self.modbus = free_port(), free_port(), free_port()
        self.ctl, self.pub = (f"tcp://127.0.0.1:{p}" for p in (self.ctl_port, self.pub_port))
        (folder / "station.toml").write_text('[station]\nline = "l1"\nname = "s1"\n')
        settings = json.dumps(sections(self.ctl_port, self.pub_port, folder))
        self.station = Program(LINEKIT, folder, camera.url, settings, log=folder / "station.log")
        self.gateway = None
        if by == "modbus":
            words = gateway_words(self, self.modbus, folder)
            self.gateway = Program(*words, log=folder / "gateway.log")
        self.kills, self.ended = Counter(), Counter()

    def plc(self, parts, takt_ms):
        words = [
            *("-m", "station.cli", "sim-plc", "--config", self.folder / "station.toml"),
            *("--ctl", self.ctl, "--by", self.by, "--port", self.modbus, "--allow-missing"),
            *("--wait-s", 120, "--parts", parts, "--takt-ms", takt_ms, "--deadline-ms", 500),
            *("--log", self.folder / "plc.jsonl"),
        ]
        return subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *map(str, words)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill_one(self, dice):
        """`kill -9` of the station, one of its children, or the gateway."""
        what = dice.choice(["station", "child", "child", *(["gateway"] if self.gateway else [])])
        if what == "child":
            found = children(self.station.process.pid)
            if not found:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(found), signal.SIGKILL)
        else:
            program = self.station if what == "station" else self.gateway
            program.kill()
            program.start()
        self.kills[what] += 1

    def up(self):
        """Start again what ended by itself, as systemd does: a station whose camera does not
        answer at its start says so and leaves (exit 4)."""
        for name, program in (("station", self.station), ("gateway", self.gateway)):
            if program is not None and program.process.poll() is not None:
                self.ended[name] += 1
                program.start()
        return True

    def close(self):
        for program in (self.gateway, self.station):
            if program is not None:
                program.__exit__()


def scored(plc):
    """The score sheet of a PLC that is stopped by hand; where it hangs, if it does not end."""
    plc.send_signal(signal.SIGINT)
    try:
        return plc.communicate(timeout=120)[0]
    except subprocess.TimeoutExpired:
        plc.send_signal(signal.SIGABRT)  # faulthandler tells every thread's place
        pytest.fail(f"sim-plc did not end within 120 s:\n{plc.communicate(timeout=10)[0]}")


AGAIN = 10  # verdicts that must come after every kill, before the next


class Verdicts:
    """How many parts had a verdict so far. Reads only what is new: a soak's log grows long, and
    the camera lives in this process."""

    def __init__(self, log):
        self.log, self.at, self.count = log, 0, 0

    def now(self):
        with self.log.open("rb") as stream:
            stream.seek(self.at)
            fresh = stream.read()
        whole = fresh.rfind(b"\n") + 1
        self.at += whole
        self.count += fresh[:whole].count(b'"accepted": true')
        return self.count


def run(folder, by, kills, takt_ms):
    """The score sheet of one run: PLC rows, bodies by FETCH, bodies of the file, recordings."""
    dice = random.Random(kills)
    log = folder / "plc.jsonl"
    with FaultCamera(fps=100) as camera:
        line = Line(folder, camera, by)
        plc = line.plc(10_000_000, takt_ms)
        try:
            wait_for(lambda: (log.exists() and log.stat().st_size) or plc.poll() is not None, 150)
            recovered_after, told = [], Verdicts(log)
            while line.kills.total() < kills:
                begun, enough = time.monotonic(), told.now() + AGAIN
                wait_for(lambda e=enough: (line.up() and told.now() >= e) or plc.poll(), 120, 0.05)
                recovered_after.append(time.monotonic() - begun)
                time.sleep(dice.uniform(0, 1.0))
                line.kill_one(dice)
            enough = told.now() + AGAIN
            wait_for(lambda: (line.up() and told.now() >= enough) or plc.poll(), 120, 0.05)
            output = scored(plc)
            print(f"started again because they had ended by themselves: {dict(line.ended)}")
            print(f"{AGAIN} verdicts after a kill: {max(recovered_after):.1f} s at the longest")
            assert plc.returncode == 0, output
            with Client(line.ctl, name="check", timeout_s=15) as client:
                fetched = list(client.fetch_all("result"))
            line.station.process.terminate()
            line.station.process.wait(20)
        finally:
            plc.kill()
            line.close()
    rows = [json.loads(text) for text in log.read_text().splitlines()]
    print(output, dict(line.kills))
    return rows, fetched, line.kills


def filed(folder):
    """Every result in the ledger's file."""
    ledger = Ledger(folder / "ledger.db", line="l1", station="s1")
    bodies, next_seq = [], 1
    while True:
        page = ledger.fetch("result", ledger.epoch, next_seq).result()
        bodies += page.bodies
        if page.end:
            break
        next_seq = page.next_seq
    recovered = ledger.recovered
    ledger.close()
    return bodies, recovered


def recorded(folder):
    """Every verdict in every recording, whole or cut off by a kill."""
    bodies = []
    for path in sorted((folder / "recordings").rglob("*.mcap*")):
        items = open_reader(path)
        bodies += [item.data for item in items if b'"stream":"result"' in item.data[:300]]
    return bodies


def check(folder, rows, fetched, kills, figure):
    bodies, recovered = filed(folder)
    assert bodies == fetched and not recovered
    results = [Result.model_validate_json(body) for body in bodies]
    assert [r.seq for r in results] == list(range(1, len(results) + 1))
    held = {r.trigger_id: r for r in results}
    assert len(held) == len(results), "a trigger has two verdicts"
    for row in rows:
        if row["accepted"]:
            assert row["trigger_id"] in held, row
        if row["passed"]:
            assert held[row["trigger_id"]].accept, row
        if row["verdict"] and row["trigger_id"] in held:
            assert row["verdict"] == held[row["trigger_id"]].verdict, row
    assert "after_failed" not in (folder / "station.log").read_text(), "words, pictures or numbers"
    seen = Counter(row["verdict"] or row["reason"] for row in rows)
    figure(
        "P1",
        f"whole line through Modbus, {dict(kills)} killed: {len(results)} verdicts in the ledger, "
        f"{sum(bool(row['verdict']) for row in rows)} at the PLC, 0 lost, doubled or wrong",
    )
    print(f"{len(rows)} parts: {dict(seen)}")
    assert sum(bool(row["verdict"]) for row in rows) >= AGAIN * kills.total(), seen
    assert seen["OK"] and seen["NG"]
    tape = recorded(folder)
    assert set(tape) <= set(bodies) and len(tape) == len(set(tape))
    print(f"{len(tape)} of {len(bodies)} verdicts are in the recordings")
    assert len(tape) >= 0.1 * len(bodies)


def test_three_kills_anywhere_and_log_ledger_and_recording_agree(tmp_path, figure):
    rows, fetched, kills = run(tmp_path, "modbus", 3, 20)
    check(tmp_path, rows, fetched, kills, figure)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thirty_kills_anywhere_and_log_ledger_and_recording_agree(tmp_path, figure):
    rows, fetched, kills = run(tmp_path, "modbus", 30, 12)
    assert kills.total() == 30
    check(tmp_path, rows, fetched, kills, figure)


@pytest.mark.nightly
@pytest.mark.timeout(0)
def test_soak_a_thousand_kills_anywhere_and_log_ledger_and_recording_agree(tmp_path, figure):
    rows, fetched, kills = run(tmp_path, "modbus", 1000, 12)
    assert kills.total() == 1000
    check(tmp_path, rows, fetched, kills, figure)


def test_the_children_of_a_killed_station_end_too(tmp_path):
    with FaultCamera(fps=30) as camera:
        line = Line(tmp_path, camera, "isp")
        try:
            wait_for(lambda: len(children(line.station.process.pid)) >= 2, 120)
            found = children(line.station.process.pid)
            line.station.kill()
            wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found), 60)
        finally:
            line.close()
