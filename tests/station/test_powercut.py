"""P2: what was acknowledged or published survives power loss."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from faultkit.powercut import build_witness, disk_at, read_log

from station.ledger import Ledger
from station.schema import parse

ROOT = Path(__file__).resolve().parents[2]
WORKER = """
import os, sys, random, time
from pathlib import Path
from buskit import opening, draft
from station import ledger as module
from station.ledger import Ledger
from station.schema import EventDraft, hex64
module.QUIET_COMMITS, module.MOST_COMMITS, module.QUIET_S = 5, 40, 0.002  # many checkpoints
folder, told, first, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
log = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
ledger = Ledger(folder / "ledger.db", line="line1", station="st1")
# Heard = about to be sent: from this moment on the row must survive.
ledger.add_listener(lambda row: os.write(log, b"row %s\\n" % row.body))
chance = random.Random(first)
for number in range(first, first + count):
    part = ledger.open_part(opening(hex64(number), part_id=f"part{number}")).result(10)
    os.write(log, b"accepted %s\\n" % part.trigger_id.encode())
    if chance.random() < 0.1:
        continue  # stays PENDING
    future = ledger.commit_result(draft(part.trigger_id, chance.random()))
    if chance.random() < 0.3:
        ledger.append("event", EventDraft(kind="x", text="y" * chance.randrange(1500)))
    if chance.random() < 0.8:
        future.result(10)
    if chance.random() < 0.05:
        time.sleep(0.01)  # quiet: a checkpoint
    if number % 37 == 0:
        ledger.ack("plc", "result", ledger.last_seq("result")).result(10)
        ledger.retain(2**52).result(10)
if len(sys.argv) > 5:
    os._exit(9)  # dies without closing
ledger.close()
"""


@pytest.fixture(scope="module")
def witness(tmp_path_factory):
    found = build_witness(tmp_path_factory.mktemp("witness"))
    if found is None:
        pytest.skip("no C compiler: the power-cut witness cannot be built")
    return found


def work(witness, disk: Path, log: Path, first: int, count: int, *more: str):
    told = disk / "told"
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(disk), str(told), str(first), str(count), *more],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "LD_PRELOAD": str(witness),
            "POWERCUT_DIR": str(disk),
            "POWERCUT_LOG": str(log),
        },
    )
    assert done.returncode in (0, 9), done.stderr


def promised(changes, disk: Path):
    """(accepted trigger ids, heard bodies, gone) up to a moment: what nobody may lose."""
    text = b"".join(c.data for c in changes if c.path == str(disk / "told"))
    lines = text.split(b"\n")[:-1]
    accepted = [line[9:].decode() for line in lines if line.startswith(b"accepted ")]
    heard = [line[4:] for line in lines if line.startswith(b"row ")]
    return accepted, heard


def check_cut(changes, disk: Path, seed: int, folder: Path) -> tuple[int, int]:
    """Cut behind the last change, start a station on what is left, compare with what was told."""
    accepted, heard = promised(changes, disk)
    folder.mkdir()
    for path, data in disk_at(changes, disk, random.Random(seed)).items():
        if Path(path).name.startswith("ledger.db"):
            (folder / Path(path).name).write_bytes(data)
    ledger = Ledger(folder / "ledger.db", line="line1", station="st1")
    try:
        assert ledger.moved_aside is None, "a power cut must not look like corruption"
        stored = {}
        for stream in ("result", "event"):
            page = ledger.fetch(stream, ledger.epoch, 1, 1).result(10)
            seq, first = page.first_seq, page.first_seq
            while True:
                page = ledger.fetch(stream, ledger.epoch, seq, 256).result(10)
                stored |= {(stream, parse(b).seq): b for b in page.bodies}
                seq = page.next_seq
                if page.end:
                    break
            have = sorted(s for name, s in stored if name == stream)
            assert have == list(range(first, ledger.last_seq(stream) + 1)), "a gap"
        oldest = min((s for name, s in stored if name == "result"), default=1)
        for body in heard:
            told = parse(body)
            if told.stream == "event" or told.seq >= oldest:
                assert stored.get((told.stream, told.seq)) == body, (
                    f"{told.stream} {told.seq} was lost"
                )
        verdicts = [parse(b).trigger_id for (name, _), b in stored.items() if name == "result"]
        assert len(verdicts) == len(set(verdicts)), "two verdicts for one trigger"
        if oldest == 1:
            assert set(accepted) <= set(verdicts), "an accepted trigger has no verdict"
        assert ledger.open_parts == 0
    finally:
        ledger.close()
    return len(accepted), len(heard)


def cuts(witness, tmp_path, count, parts, figure):
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    work(witness, disk, log, 1, parts, "die")
    work(witness, disk, log, parts + 1, parts // 2)
    changes = read_log(log)
    syncs = sum(c.op == "sync" for c in changes)
    assert syncs > parts, f"{syncs} syncs for {parts} parts: the witness saw nothing"
    chance, most = random.Random(7), 0
    for number in range(count):
        at = chance.randrange(1, len(changes) + 1)
        _, heard = check_cut(changes[:at], disk, number, tmp_path / f"cut{number}")
        most = max(most, heard)
    figure("P2", f"{count} cuts in {len(changes)} writes with {syncs} syncs: none of up to {most} "
           "rows that were told is missing")  # fmt: skip


def test_20_power_cuts_lose_nothing_that_was_told(witness, tmp_path, figure):
    cuts(witness, tmp_path, 20, 150, figure)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_200_power_cuts_lose_nothing_that_was_told(witness, tmp_path, figure):
    cuts(witness, tmp_path, 200, 400, figure)


def test_the_witness_would_see_a_ledger_that_does_not_sync(witness, tmp_path, monkeypatch):
    """The test of the test: with synchronous=OFF rows are lost, and these checks say so."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.mkdir()
    careless = WORKER.replace(
        "ledger = Ledger(",
        "from station import ledger_store\n"
        "real = ledger_store.Store._connect\n"
        "def connect(self, *, check):\n"
        "    db = real(self, check=check)\n"
        "    db.execute('PRAGMA synchronous=OFF')\n"
        "    return db\n"
        "ledger_store.Store._connect = connect\n"
        "ledger = Ledger(",
    )
    monkeypatch.setitem(globals(), "WORKER", careless)
    work(witness, disk, log, 1, 60, "die")
    changes = read_log(log)
    failures = 0
    for number in range(10):
        try:
            check_cut(changes[: len(changes) - number], disk, number, tmp_path / f"cut{number}")
        except AssertionError:
            failures += 1
    assert failures >= 5
