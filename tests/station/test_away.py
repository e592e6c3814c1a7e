"""P6 across processes: a consumer that was stopped, cut off or killed gets all it missed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buskit import FastStation, draft, opening

from station.schema import hex64

ROOT = Path(__file__).resolve().parents[2]
CONSUMER = """
import sys
from station.client import Client, NoAnswer, Refused
ctl, pub, since = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Client(ctl, pub, name="mes", timeout_s=1.0) as client:
    for body in client.subscribe(("result",), since={"result": since}, timeout_s=1.0):
        if body is not None:
            print(body.seq, body.epoch, flush=True)
            if body.seq % 100 == 0:
                try:
                    client.ack("result", body.seq)
                except (NoAnswer, Refused):
                    pass  # the station is away: a later ACK covers this one
"""


def consumer(station, log, since=0):
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            CONSUMER,
            station.bus.ctl_address,
            station.bus.pub_address,
            str(since),
        ],
        stdout=log.open("a"),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def produce(station, first, count):
    for number in range(first, first + count):
        station.ledger.open_part(opening(hex64(number)))
        last = station.ledger.commit_result(draft(hex64(number)))
    last.result(30)


def seqs(log):
    return [int(line.split()[0]) for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(log, last, timeout_s=60.0):
    end = time.monotonic() + timeout_s
    while not (seen := seqs(log)) or seen[-1] < last:
        assert time.monotonic() < end, f"only {len(seen)} came, the last {seen[-1:]}"
        time.sleep(0.05)
    return seqs(log)


@pytest.fixture
def station(tmp_path):
    found = FastStation(tmp_path)
    yield found
    found.stop()


def test_a_consumer_stopped_until_its_connection_is_given_up_gets_all(station, tmp_path, figure):
    """SIGSTOP for longer than the heartbeats allow, while 4,000 bodies pass."""
    log = tmp_path / "seen"
    process = consumer(station, log)
    try:
        produce(station, 0, 50)
        wait_for(log, 50)
        process.send_signal(signal.SIGSTOP)
        produce(station, 50, 4000)
        time.sleep(2.5)
        process.send_signal(signal.SIGCONT)
        produce(station, 4050, 50)
        assert wait_for(log, 4100) == list(range(1, 4101))
        figure("P6", "stopped (SIGSTOP) beyond its heartbeats: 4,100 of 4,100 results, in order")
    finally:
        process.kill()
        process.wait()


def test_a_killed_consumer_continues_at_its_durable_cursor(station, tmp_path):
    """It may see again what it had not acknowledged, but misses nothing."""
    log = tmp_path / "seen"
    process = consumer(station, log)
    try:
        produce(station, 0, 550)
        wait_for(log, 550)
        process.kill()
        process.wait()
        produce(station, 550, 300)
        cursor = station.ledger.cursors["mes"]["result"]
        assert cursor in (400, 500)
        process = consumer(station, log, cursor)
        seen = wait_for(log, 850)
        assert seen == [*range(1, 551), *range(cursor + 1, 851)]
    finally:
        process.kill()
        process.wait()


def test_a_consumer_lives_through_a_restart_of_the_station(tmp_path):
    log = tmp_path / "seen"
    station = FastStation(tmp_path)
    ctl, pub = station.bus.ctl_address, station.bus.pub_address
    process = consumer(station, log)
    try:
        for turn in range(3):
            produce(station, turn * 100, 100)
            if turn != 1:
                wait_for(log, turn * 100 + 100)
            station.stop()
            station = FastStation(tmp_path, ctl=ctl, pub=pub)
        assert wait_for(log, 300) == list(range(1, 301))
        assert len({line.split()[1] for line in log.read_text().splitlines()}) == 1
    finally:
        process.kill()
        process.wait()
        station.stop()
