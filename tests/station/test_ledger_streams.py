"""The ledger's streams: FETCH, cursors, retention, housekeeping, and all of it at random."""

import pytest
from buskit import draft, opening
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledgerkit import Clock, inspect, make, until

from engines.errors import LedgerError
from station.ledger import Duplicate
from station.schema import EventDraft, Result, hex64, parse


@pytest.fixture
def ledger(tmp_path):
    found = make(tmp_path)
    yield found
    found.close()


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
