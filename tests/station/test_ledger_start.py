"""The ledger at its start and end: recovery, damaged and foreign files, the lock."""

import os
import shutil
import sqlite3

import pytest
from buskit import draft, opening
from ledgerkit import inspect, make

from engines.errors import InUseError, LedgerError
from station.ledger import Ledger
from station.schema import EventDraft, parse


@pytest.fixture
def ledger(tmp_path):
    found = make(tmp_path)
    yield found
    found.close()


# -- start, restart, files -----------------------------------------------------------------------


def test_a_restart_continues_without_a_gap_and_resolves_what_was_open(tmp_path):
    ledger = make(tmp_path)
    epoch = ledger.epoch
    inspect(ledger)
    left = [ledger.open_part(opening(part_id=f"P{n}")).result(30) for n in range(3)]
    ledger.close()
    ledger = make(tmp_path)
    assert ledger.epoch == epoch and ledger.last_seq("result") == 4 and ledger.open_parts == 0
    rows = [parse(row.body) for row in ledger.recovered]
    assert [row.trigger_id for row in rows] == [part.trigger_id for part in left]
    assert {(r.verdict, r.reason, r.late) for r in rows} == {("ERROR", "restart", True)}
    assert [row.seq for row in rows] == [2, 3, 4] and rows[0].recipe == "test"
    assert parse(ledger.latest("event").result(30)).data == {"parts": 3}
    assert ledger.open_part(opening(left[0].trigger_id)).result(30).done
    assert inspect(ledger).seq == 5
    ledger.close()
    ledger = make(tmp_path)
    assert ledger.recovered == () and ledger.last_seq("event") == 1
    ledger.close()


def test_a_late_answer_for_a_recovered_part_changes_nothing(tmp_path):
    ledger = make(tmp_path)
    trigger = ledger.open_part(opening()).result(30).trigger_id
    ledger.close()
    ledger = make(tmp_path)
    row = ledger.commit_result(draft(trigger)).result(30)
    assert not row.first and parse(row.body).verdict == "ERROR"
    ledger.close()


@pytest.mark.parametrize("damage", ["noise", "header", "middle", "text"])
def test_a_corrupt_file_is_moved_aside_and_alarmed(tmp_path, damage):
    path = tmp_path / "ledger.db"
    ledger = make(tmp_path)
    epoch = ledger.epoch
    futures = [ledger.append("event", EventDraft(kind="x", text="y" * 500)) for _ in range(200)]
    futures[-1].result(30)
    ledger.close()
    data = bytearray(path.read_bytes())
    if damage == "noise":
        data = bytearray(os.urandom(len(data)))
    elif damage == "header":
        data[:100] = bytes(100)
    elif damage == "middle":
        data[4096 * 2 : 4096 * 12] = os.urandom(4096 * 10)
    else:
        data = bytearray(b"this is no database, only a text that somebody put there\n" * 200)
    path.write_bytes(data)
    ledger = make(tmp_path)
    assert ledger.moved_aside is not None and ledger.moved_aside.read_bytes() == bytes(data)
    assert ledger.epoch != epoch and ledger.last_seq("result") == 0
    event = parse(ledger.latest("event").result(30))
    assert event.kind == "ledger_corrupt" and str(ledger.moved_aside) in event.text
    assert inspect(ledger).seq == 1
    ledger.close()


def test_a_foreign_database_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("CREATE TABLE theirs(x)")
    db.close()
    with pytest.raises(LedgerError, match="not a ledger"):
        make(tmp_path)
    assert make_elsewhere(tmp_path)


def make_elsewhere(folder):
    ledger = make(folder / "other")
    ledger.close()
    return True


def test_a_newer_ledger_is_left_alone(tmp_path):
    make(tmp_path).close()
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(LedgerError, match="schema 99"):
        make(tmp_path)


def test_another_stations_ledger_is_refused(tmp_path):
    make(tmp_path).close()
    with pytest.raises(LedgerError, match="own file"):
        Ledger(tmp_path / "ledger.db", line="line1", station="st2")
    make(tmp_path).close()  # and the lock was given back


def test_two_stations_cannot_share_a_ledger(ledger, tmp_path):
    with pytest.raises(InUseError, match=str(os.getpid())) as caught:
        make(tmp_path)
    assert caught.value.code == 9


def test_nobody_else_reads_the_file_while_it_is_open(ledger, tmp_path):
    inspect(ledger)
    other = sqlite3.connect(tmp_path / "ledger.db", timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("SELECT * FROM meta").fetchall()
    other.close()


@pytest.mark.parametrize("where", ["file_as_folder", "folder_as_file"])
def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, where):
    (tmp_path / "x").write_text("")
    (tmp_path / "y.db").mkdir()
    path = tmp_path / "x" / "ledger.db" if where == "file_as_folder" else tmp_path / "y.db"
    with pytest.raises(LedgerError) as caught:
        Ledger(path, line="l", station="s")
    assert caught.value.code == 6 and "\n" not in str(caught.value)


def test_what_killed_stations_left_in_the_wal_is_folded_at_the_next_start(tmp_path):
    sizes, here = [], tmp_path / "0"
    here.mkdir()
    for life in range(1, 5):
        ledger = make(here)
        for _ in range(30):
            inspect(ledger)
        wal = here / "ledger.db-wal"
        sizes.append(wal.stat().st_size)
        after = tmp_path / str(life)  # what a kill -9 leaves: both files as they are now
        after.mkdir()
        for name in ("ledger.db", "ledger.db-wal"):
            shutil.copy(here / name, after)
        ledger.close()
        here = after
    assert max(sizes) < 1.5 * sizes[0], sizes
    ledger = make(here)
    assert ledger.last_seq("result") == 120
    ledger.close()


def test_what_waits_at_close_is_written(tmp_path):
    ledger = make(tmp_path)
    futures = [ledger.append("event", EventDraft(kind="x")) for _ in range(500)]
    ledger.close()
    assert futures[-1].result(0).seq == 500
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("event", EventDraft(kind="x")).result(1)
    assert not ledger.healthy
