"""The ledger: durable before heard, first write wins, gapless, and honest about its faults."""

import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest
from buskit import draft, opening
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.errors import InUseError, LedgerError
from station.ledger import Duplicate, Ledger, PartHandle
from station.ledger_state import Moment
from station.schema import DescDraft, EventDraft, Result, hex64, new_id, parse


def make(folder, **more):
    return Ledger(folder / "ledger.db", line="line1", station="st1", **more)


@pytest.fixture
def ledger(tmp_path):
    found = make(tmp_path)
    yield found
    found.close()


class Clock:
    """Both clocks, moved by hand."""

    def __init__(self):
        self.ns = 1_000_000_000

    def __call__(self):
        return Moment(self.ns, self.ns // 1000)


def inspect(ledger, trigger_id=None, score=0.1, **changes):
    part = ledger.open_part(opening(trigger_id, **changes)).result(30)
    return ledger.commit_result(draft(part.trigger_id, score)).result(30)


def test_a_part_gets_its_verdict_and_the_bytes_are_the_same_everywhere(ledger):
    heard = []
    ledger.add_listener(heard.append)
    part = ledger.open_part(opening(part_id="P7", deadline_ms=500)).result(30)
    assert isinstance(part, PartHandle) and (part.part_id, part.attempt) == ("P7", 1)
    assert ledger.open_parts == 1
    done = ledger.commit_result(draft(part.trigger_id, 0.9)).result(30)
    result = parse(done.body)
    assert (result.seq, result.verdict, result.trigger_id) == (1, "NG", part.trigger_id)
    assert (result.epoch, result.line, result.station) == (ledger.epoch, "line1", "st1")
    page = ledger.fetch("result", ledger.epoch, 1).result(30)
    assert [row.body for row in heard] == [done.body] == list(page.bodies)
    assert ledger.latest("result").result(30) == done.body
    assert ledger.get_part("P7").result(30) == (done.body,)
    assert ledger.open_parts == 0 and ledger.last_seq("result") == 1


def test_the_first_verdict_wins_for_ever(ledger):
    first = inspect(ledger, "00000000000000aa", 0.9)
    second = ledger.commit_result(draft("00000000000000aa", 0.1)).result(30)
    assert first.first and not second.first
    assert second.body == first.body and second.seq == first.seq
    assert ledger.last_seq("result") == 1


def test_two_verdicts_in_one_group_are_still_one(ledger):
    heard = []
    ledger.add_listener(heard.append)
    trigger = ledger.open_part(opening()).result(30).trigger_id
    gate = _hold(ledger)
    futures = [ledger.commit_result(draft(trigger, s)) for s in (0.9, 0.1, 0.2)]
    gate.set()
    rows = [future.result(30) for future in futures]
    assert [row.first for row in rows] == [True, False, False]
    assert len({row.body for row in rows}) == 1 and len(heard) == 1


def _hold(ledger):
    """Keep the writer busy until the event is set, so that what follows is one group."""
    gate, entered = threading.Event(), threading.Event()

    def wait(_):
        entered.set()
        gate.wait(30)
        return ()

    ledger._read(wait)
    assert entered.wait(30)
    return gate


def test_a_trigger_is_accepted_once_and_a_part_may_be_inspected_again(ledger):
    first = ledger.open_part(opening("00000000000000aa", part_id="P", session=new_id())).result(30)
    again = ledger.open_part(opening("00000000000000aa", part_id="P")).result(30)
    assert again == Duplicate("00000000000000aa", first.session, done=False)
    ledger.commit_result(draft("00000000000000aa")).result(30)
    assert ledger.open_part(opening("00000000000000aa")).result(30).done
    second = ledger.open_part(opening(part_id="P")).result(30)
    assert second.attempt == 2
    assert ledger.open_part(opening(part_id="Q")).result(30).attempt == 1


def test_two_openings_of_one_trigger_in_one_group_are_one_part(ledger):
    gate = _hold(ledger)
    futures = [ledger.open_part(opening("00000000000000aa")) for _ in range(3)]
    gate.set()
    assert [type(f.result(30)) for f in futures] == [PartHandle, Duplicate, Duplicate]


def test_open_and_verdict_may_share_a_group(ledger):
    gate = _hold(ledger)
    opened = ledger.open_part(opening("00000000000000aa"))
    done = ledger.commit_result(draft("00000000000000aa"))
    gate.set()
    assert isinstance(opened.result(30), PartHandle) and done.result(30).first
    assert ledger.open_parts == 0


def test_a_verdict_without_a_part_is_refused_alone(ledger):
    gate = _hold(ledger)
    wrong = ledger.commit_result(draft(new_id()))
    event = ledger.append("event", EventDraft(kind="fine"))
    gate.set()
    with pytest.raises(LedgerError, match="no part is open"):
        wrong.result(30)
    assert event.result(30).seq == 1 and ledger.healthy


def test_a_body_that_is_too_long_costs_only_itself(ledger):
    gate = _hold(ledger)
    wrong = ledger.append(
        "event", EventDraft(kind="x", data={str(n): "y" * 2000 for n in range(9)})
    )
    good = ledger.append("event", EventDraft(kind="fine"))
    gate.set()
    with pytest.raises(ValueError, match="16384"):
        wrong.result(30)
    assert good.result(30).seq == 1 and ledger.healthy


def test_descriptions_and_events_have_their_own_sequences(ledger):
    event = ledger.append("event", EventDraft(kind="x")).result(30)
    desc = ledger.append(
        "desc", DescDraft(trigger_id=new_id(), part_id="P", sentence="s", source="template")
    ).result(30)
    assert (event.seq, desc.seq) == (1, 1)
    assert parse(desc.body).sentence == "s" and parse(event.body).kind == "x"
    with pytest.raises(ValueError, match="belongs to event"):
        ledger.append("desc", EventDraft(kind="x"))


# -- deadlines -----------------------------------------------------------------------------------


def test_a_verdict_in_time_is_not_late_to_the_very_last_nanosecond(tmp_path):
    clock = Clock()
    ledger = make(tmp_path, clock=clock)
    ledger.open_part(opening("00000000000000aa", received_ns=clock.ns, deadline_ms=10)).result(30)
    clock.ns += 10_000_000
    done = ledger.commit_result(draft("00000000000000aa")).result(30)
    assert not done.late and parse(done.body).accept
    ledger.close()


@pytest.mark.parametrize("score", [0.1, 0.9])
def test_an_answer_after_the_deadline_becomes_undecided(tmp_path, score):
    clock = Clock()
    ledger = make(tmp_path, clock=clock)
    ledger.open_part(opening("00000000000000aa", received_ns=clock.ns, deadline_ms=10)).result(30)
    clock.ns += 10_000_001
    done = ledger.commit_result(draft("00000000000000aa", score)).result(30)
    result = parse(done.body)
    assert (result.verdict, result.reason, result.late) == ("UNDECIDED", "deadline", True)
    assert done.replaced and done.late and result.score == score
    ledger.close()


def test_an_error_after_the_deadline_stays_what_it_is(tmp_path):
    clock = Clock()
    ledger = make(tmp_path, clock=clock)
    ledger.open_part(opening("00000000000000aa", received_ns=clock.ns, deadline_ms=10)).result(30)
    clock.ns += 20_000_000
    wrong = draft("00000000000000aa", verdict="ERROR", reason="camera")
    done = ledger.commit_result(wrong).result(30)
    result = parse(done.body)
    assert (result.verdict, result.reason, result.late) == ("ERROR", "camera", True)
    assert not done.replaced
    ledger.close()


class JumpingClock(Clock):
    """Past the deadline from the n-th reading on: the commit itself took too long."""

    def __init__(self, readings):
        super().__init__()
        self.readings = readings

    def __call__(self):
        self.readings -= 1
        if self.readings < 0:
            return Moment(self.ns + 60_000_000_000, self.ns // 1000)
        return super().__call__()


def test_a_commit_that_itself_ends_late_says_so_before_anybody_hears(tmp_path):
    clock = JumpingClock(10**6)
    ledger = make(tmp_path, clock=clock)
    heard = []
    ledger.add_listener(heard.append)
    ledger.open_part(opening("00000000000000aa", received_ns=clock.ns, deadline_ms=10)).result(30)
    clock.readings = 2  # handed in, row written; the reading after the commit is late
    done = ledger.commit_result(draft("00000000000000aa")).result(30)
    result = parse(done.body)
    assert result.late and done.late and result.verdict == "OK" and not result.accept
    assert not done.replaced
    assert [row.body for row in heard] == [done.body]
    assert ledger.fetch("result", ledger.epoch, 1).result(30).bodies == (done.body,)
    ledger.close()


def test_waiting_for_the_ledger_is_told_in_the_timings(tmp_path):
    clock = Clock()
    ledger = make(tmp_path, clock=clock)
    ledger.open_part(opening("00000000000000aa", received_ns=clock.ns)).result(30)
    gate = _hold(ledger)
    future = ledger.commit_result(draft("00000000000000aa"))
    clock.ns += 7_000_000
    gate.set()
    assert parse(future.result(30).body).timings_us.commit == 7_000
    ledger.close()


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


def test_what_waits_at_close_is_written(tmp_path):
    ledger = make(tmp_path)
    futures = [ledger.append("event", EventDraft(kind="x")) for _ in range(500)]
    ledger.close()
    assert futures[-1].result(0).seq == 500
    with pytest.raises(LedgerError, match="closed"):
        ledger.append("event", EventDraft(kind="x")).result(1)
    assert not ledger.healthy


# -- faults --------------------------------------------------------------------------------------


def fill_the_disk(ledger):
    """SQLITE_FULL from now on: the file may not grow by one page."""

    def limit(store):
        pages = store.db.execute("PRAGMA page_count").fetchone()[0]
        store.db.execute(f"PRAGMA max_page_count={pages}")
        return True

    assert ledger._read(limit).result(30)


def until(condition, timeout_s=30.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def test_a_full_disk_sends_nothing_and_heals_to_error(tmp_path):
    ledger = make(tmp_path)
    heard = []
    ledger.add_listener(heard.append)
    parts = [ledger.open_part(opening()).result(30) for _ in range(400)]
    fill_the_disk(ledger)
    futures = [ledger.commit_result(draft(part.trigger_id)) for part in parts]
    failed = [f for f in futures if f.exception(30) is not None]
    assert failed and all(isinstance(f.exception(), LedgerError) for f in failed)
    assert not ledger.healthy and "full" in ledger.fault
    assert len(heard) == len(futures) - len(failed), "what was not committed was not heard"
    with pytest.raises(LedgerError):
        ledger.open_part(opening()).result(30)
    until(lambda: ledger.healthy)  # the file is opened anew, and there the limit is gone
    assert ledger.fault is None and ledger.open_parts == 0
    results = [parse(row.body) for row in heard if row.stream == "result"]
    assert [r.seq for r in results] == list(range(1, len(parts) + 1))
    verdicts = {r.trigger_id: r for r in results}
    for part, future in zip(parts, futures, strict=True):
        verdict = verdicts[part.trigger_id]
        if future.exception() is None:
            assert verdict.accept
        else:
            assert (verdict.verdict, verdict.reason) == ("ERROR", "restart")
    assert parse(heard[-1].body).kind == "ledger_recovered"
    assert inspect(ledger).seq == len(parts) + 1
    ledger.close()


def test_parts_in_work_live_through_a_healed_fault(tmp_path):
    ledger = make(tmp_path)
    working = ledger.open_part(opening(deadline_ms=60_000)).result(30)
    ledger._fail([], "a fault for the test")
    assert not ledger.healthy
    until(lambda: ledger.healthy)
    assert parse(ledger.commit_result(draft(working.trigger_id)).result(30).body).accept
    ledger.close()


def test_an_unseen_verdict_found_after_a_fault_is_marked_late(tmp_path):
    """The commit ended but its confirmation did not: nobody may act on it any more."""
    ledger = make(tmp_path)
    part = ledger.open_part(opening(deadline_ms=60_000)).result(30)
    broken = Future()

    def fail_after_commit(store):
        real = store.transaction

        def transaction():
            store.transaction = real
            return _RaiseAfter(real())

        store.transaction = transaction
        broken.set_result(True)

    ledger._read(fail_after_commit).result(30)
    with pytest.raises(LedgerError, match="after the commit"):
        ledger.commit_result(draft(part.trigger_id)).result(30)
    until(lambda: ledger.healthy)
    rows = ledger.fetch("result", ledger.epoch, 1).result(30).bodies
    assert len(rows) == 1
    assert parse(rows[0]).verdict == "OK" and parse(rows[0]).late and not parse(rows[0]).accept
    ledger.close()


class _RaiseAfter:
    def __init__(self, inner):
        self.inner = inner

    def __enter__(self):
        return self.inner.__enter__()

    def __exit__(self, *exc):
        self.inner.__exit__(*exc)
        raise sqlite3.OperationalError("disk I/O error after the commit")


def test_a_disk_that_stays_full_stays_unhealthy(tmp_path):
    """A real limit of the operating system: no file of this process may grow (EFBIG)."""
    script = """
import resource, signal, sys, time
from pathlib import Path
from buskit import opening, draft
from station.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
ledger = Ledger(Path(sys.argv[1]) / "ledger.db", line="l", station="s")
heard = []
ledger.add_listener(heard.append)
part = ledger.open_part(opening()).result(30)
resource.setrlimit(resource.RLIMIT_FSIZE, (512, resource.RLIM_INFINITY))
try:
    ledger.commit_result(draft(part.trigger_id)).result(30)
    print("committed")
except Exception as error:
    print(type(error).__name__)
time.sleep(1.5)
print(ledger.healthy, len(heard))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
end = time.monotonic() + 30
while not ledger.healthy and time.monotonic() < end:
    time.sleep(0.05)
print(ledger.healthy, [row.stream.value for row in heard])
ledger.close()
"""
    tests = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
    )
    assert done.stdout.splitlines() == ["LedgerError", "False 0", "True ['result', 'event']"], (
        done.stdout + done.stderr
    )


def test_a_failing_listener_costs_no_verdict(ledger):
    heard = []
    ledger.add_listener(lambda _: 1 / 0)
    ledger.add_listener(heard.append)
    assert inspect(ledger).first and len(heard) == 1 and ledger.healthy


def test_nobody_can_cancel_what_was_handed_in(ledger):
    trigger = ledger.open_part(opening()).result(30).trigger_id
    gate = _hold(ledger)
    future = ledger.commit_result(draft(trigger))
    assert not future.cancel()
    gate.set()
    assert future.result(30).first


# -- readers -------------------------------------------------------------------------------------


def test_fetch_pages_are_gapless_bounded_and_know_their_end(ledger):
    futures = [ledger.append("event", EventDraft(kind="x", text="y" * 900)) for _ in range(700)]
    futures[-1].result(10)
    seen, seq = [], 1
    while True:
        page = ledger.fetch("event", ledger.epoch, seq, 256).result(30)
        assert sum(map(len, page.bodies)) <= 256 * 1024 and page.last_seq == 700
        seen += [parse(data).seq for data in page.bodies]
        seq = page.next_seq
        if page.end:
            break
    assert seen == list(range(1, 701))
    beyond = ledger.fetch("event", ledger.epoch, 701).result(30)
    assert beyond.end and not beyond.gone and beyond.bodies == ()


def test_another_epoch_is_gone_not_empty(ledger):
    inspect(ledger)
    page = ledger.fetch("result", "f" * 16, 1).result(30)
    assert page.gone and page.bodies == () and page.epoch == ledger.epoch


def test_an_empty_ledger_is_at_its_end(ledger):
    page = ledger.fetch("result", ledger.epoch, 1).result(30)
    assert page.end and not page.gone and (page.first_seq, page.last_seq) == (1, 0)
    assert ledger.latest("result").result(30) is None


def test_cursors_are_durable_and_never_go_back(tmp_path):
    ledger = make(tmp_path)
    for _ in range(5):
        inspect(ledger)
    assert ledger.ack("plc", "result", 4).result(30) == 4
    assert ledger.ack("plc", "result", 2).result(30) == 4
    with pytest.raises(LedgerError, match="ends at 5"):
        ledger.ack("plc", "result", 6).result(30)
    ledger.close()
    ledger = make(tmp_path)
    assert ledger.cursors == {"plc": {"result": 4}}
    assert ledger.forget("plc").result(30) == 1 and ledger.cursors == {}
    ledger.close()


def test_retention_deletes_only_what_is_acknowledged_and_old(tmp_path):
    clock = Clock()
    ledger = make(tmp_path, clock=clock)
    for number in range(10):
        clock.ns += 1_000_000_000
        inspect(ledger, hex64(number + 1), received_ns=clock.ns)
        if number == 5:
            old_us = clock.ns // 1000  # rows 1..5 are older than this
    assert ledger.retain(old_us).result(30) == 0, "nothing is acknowledged"
    ledger.ack("plc", "result", 9).result(30)
    ledger.ack("mes", "result", 3).result(30)
    assert ledger.retain(old_us).result(30) == 3, "the slowest consumer decides"
    ledger.ack("mes", "result", 9).result(30)
    assert ledger.retain(old_us).result(30) == 2, "age decides"
    assert ledger.retain(old_us).result(30) == 0
    page = ledger.fetch("result", ledger.epoch, 1).result(30)
    assert page.gone and page.first_seq == 6
    assert len(ledger.fetch("result", ledger.epoch, 6).result(30).bodies) == 5
    ledger.close()
    ledger = make(tmp_path, clock=clock)
    assert inspect(ledger, received_ns=clock.ns).seq == 11, "the sequence never begins anew"
    ledger.close()


def test_a_long_retention_goes_on_by_itself_while_verdicts_are_written(tmp_path):
    ledger = make(tmp_path)
    for _ in range(350):
        last = ledger.append("event", EventDraft(kind="x"))
    ledger.ack("mes", "event", last.result(30).seq).result(30)
    assert ledger.retain(2**52).result(30) == 100
    until(lambda: inspect(ledger) and ledger.fetch("event", ledger.epoch, 1).result(30).gone)
    until(lambda: inspect(ledger) and _first(ledger, "event") == 351)
    assert ledger.healthy and _first(ledger, "result") == 1
    ledger.close()


def _first(ledger, stream):
    return ledger.fetch(stream, ledger.epoch, 1).result(30).first_seq


def test_retention_never_makes_a_hole_even_when_the_clock_jumped(tmp_path):
    clock = Clock()
    ledger = make(tmp_path, clock=clock)
    for wall in (10, 20, 90, 30, 40):
        clock.ns = wall * 1_000_000_000
        inspect(ledger, received_ns=clock.ns)
    ledger.ack("plc", "result", 5).result(30)
    assert ledger.retain(50 * 1_000_000).result(30) == 2
    assert ledger.retain(50 * 1_000_000).result(30) == 0
    assert [parse(b).seq for b in ledger.fetch("result", ledger.epoch, 3).result(30).bodies] == [
        3,
        4,
        5,
    ]
    ledger.close()


def test_everything_deleted_is_gone_and_the_sequence_goes_on(tmp_path):
    clock = Clock()
    ledger = make(tmp_path, clock=clock)
    inspect(ledger, received_ns=clock.ns)
    ledger.ack("plc", "result", 1).result(30)
    assert ledger.retain(2**52).result(30) == 1
    page = ledger.fetch("result", ledger.epoch, 1).result(30)
    assert page.gone and page.first_seq == 2 and page.last_seq == 1
    assert ledger.latest("result").result(30) is None
    assert inspect(ledger, received_ns=clock.ns).seq == 2
    ledger.close()


def test_the_writer_ticks_when_idle(ledger):
    before = ledger.tick_ns
    until(lambda: ledger.tick_ns > before)


def test_the_wal_is_folded_back_when_the_line_is_quiet(tmp_path, ledger):
    for _ in range(150):
        inspect(ledger)
    database = tmp_path / "ledger.db"
    before = database.stat().st_size
    until(lambda: database.stat().st_size > before)


# -- any order of anything -----------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "ok", "ng", "error", "event", "restart", "tick"]),
        st.integers(0, 5),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_whatever_happens_each_accepted_trigger_has_one_verdict(tmp_path_factory, steps):
    """A model in a dict beside the ledger: first write wins, gapless, PENDING never survives."""
    folder, clock = tmp_path_factory.mktemp("ledger"), Clock()
    ledger, expected, pending, events = make(folder, clock=clock), {}, {}, 0
    for step, number in steps:
        trigger = hex64(number)
        if step == "open":
            part = opening(trigger, received_ns=clock.ns, deadline_ms=10)
            answer = ledger.open_part(part).result(30)
            known = trigger in expected or trigger in pending
            assert isinstance(answer, Duplicate) == known
            pending |= {} if known else {trigger: clock.ns + 10_000_000}
        elif step in ("ok", "ng", "error"):
            wanted = draft(trigger, 0.1 if step == "ok" else 0.9)
            if step == "error":
                wanted = draft(trigger, 0.9, verdict="ERROR", reason="infer")
            future = ledger.commit_result(wanted)
            if trigger in pending:
                late = clock.ns > pending.pop(trigger)
                verdict = "UNDECIDED" if late and step != "error" else wanted.verdict
                expected[trigger] = str(verdict)
                assert future.result(30).first
            elif trigger in expected:
                assert not future.result(30).first
            else:
                assert isinstance(future.exception(30), LedgerError)
        elif step == "event":
            events = ledger.append("event", EventDraft(kind="x")).result(30).seq
        elif step == "tick":
            clock.ns += number * 3_000_000
        else:
            ledger.close()
            ledger = make(folder, clock=clock)
            expected |= dict.fromkeys(pending, "ERROR")
            pending = {}
    page = ledger.fetch("result", ledger.epoch, 1, 256).result(30)
    results = [Result.model_validate_json(data) for data in page.bodies]
    assert [r.seq for r in results] == list(range(1, len(expected) + 1))
    assert {r.trigger_id: str(r.verdict) for r in results} == expected
    assert ledger.last_seq("event") >= events
    ledger.close()
