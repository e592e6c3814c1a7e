"""The Modbus gateway seen by a bare pymodbus client that applies the documented rule."""

import time

import pytest

pytest.importorskip("pymodbus")

from tests.station.gatekit import truth, wait_for
from tests.station.modbuskit import (  # noqa: F401
    BUSY,
    LINK,
    READY,
    VALID,
    Plc,
    gateway,
    modbus_line,
    scripted_station,
)


def run_parts(plc, count, station):
    seen, wrong = {}, []
    for part in range(1, count + 1):
        passed, verdict, _ = plc.inspect(part)
        seen[verdict] = seen.get(verdict, 0) + 1
        if verdict == "REFUSED" and not passed and station.disk_stalled:
            continue  # safe: the verdict itself was not durable in time
        if verdict != truth(str(part)) or passed != (verdict == "OK"):
            wrong.append((part, verdict, passed))
    return seen, wrong


def test_a_run_sees_every_verdict_and_none_wrong(line):
    station, _, plc = line
    seen, wrong = run_parts(plc, 100, station)
    assert not wrong and set(seen) == {"OK", "NG", "UNDECIDED", "ERROR"}


@pytest.mark.slow
def test_a_run_of_1000_parts_sees_every_verdict_and_none_wrong(line, figure):
    station, _, plc = line
    begun = time.monotonic()
    seen, wrong = run_parts(plc, 1000, station)
    figure(
        "P1",
        f"bare pymodbus, 1,000 parts in {time.monotonic() - begun:.1f} s: {seen}, none wrong; "
        f"slowest commit {station.slowest_s * 1e3:.0f} ms",
    )
    assert not wrong and sum(seen.values()) == 1000
    assert station.ledger.last_seq("result") == 1000


def test_the_registers_hold_score_threshold_seq_and_epoch(line):
    station, made, plc = line
    for part in (n for n in range(1, 200) if truth(str(n)) == "NG"):
        plc.wait_bits(READY)
        plc.word += 1
        plc.write(part)
        words = plc.wait_bits(VALID)
        plc.ack = part
        if words[9] not in (102, 106):  # a starved machine
            break
        plc.write(part)
    assert words[10:12] == [1500, 500] and words[9] == 1
    assert words[14:16] == [0, station.ledger.last_seq("result")]
    assert words[16] << 16 | words[17] == int(station.ledger.epoch[:8], 16)
    assert words[18] << 16 | words[19] == made.bridge.prefix
    assert words[8] == plc.word


def test_the_bits_go_ready_busy_valid_and_back(line):
    station, _, plc = line
    station.work_s = 0.15
    plc.wait_bits(READY)
    plc.word += 1
    plc.write(7)
    assert plc.wait_bits(BUSY)[2] & (READY | VALID) == 0
    assert plc.wait_bits(VALID)[2] & (READY | BUSY) == 0
    plc.ack = 7
    plc.write(7)
    words = plc.wait_bits(READY)
    assert words[2] & (BUSY | VALID) == 0 and words[3] == 0


def test_a_station_that_is_not_ready_or_gone_shows_and_refuses(line):
    station, _, plc = line
    plc.wait_bits(READY)
    station.ready = False
    wait_for(lambda: not plc.read()[2] & READY)
    assert plc.read()[2] & LINK
    plc.word += 1
    plc.write(3)
    words = plc.wait_bits(VALID)
    assert words[3] == 0x9696 and words[9] == 102 and not plc.passes(words, 3)
