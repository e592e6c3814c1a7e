"""The ledger: durable before heard, first write wins, and late is never acted on."""

import pytest
from buskit import draft, opening
from ledgerkit import Clock, JumpingClock, hold, inspect, make

from engines.errors import LedgerError
from station.ledger import Duplicate, PartHandle
from station.schema import DescDraft, EventDraft, new_id, parse


@pytest.fixture
def ledger(tmp_path):
    found = make(tmp_path)
    yield found
    found.close()


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
    gate = hold(ledger)
    futures = [ledger.commit_result(draft(trigger, s)) for s in (0.9, 0.1, 0.2)]
    gate.set()
    rows = [future.result(30) for future in futures]
    assert [row.first for row in rows] == [True, False, False]
    assert len({row.body for row in rows}) == 1 and len(heard) == 1


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
    gate = hold(ledger)
    futures = [ledger.open_part(opening("00000000000000aa")) for _ in range(3)]
    gate.set()
    assert [type(f.result(30)) for f in futures] == [PartHandle, Duplicate, Duplicate]


def test_open_and_verdict_may_share_a_group(ledger):
    gate = hold(ledger)
    opened = ledger.open_part(opening("00000000000000aa"))
    done = ledger.commit_result(draft("00000000000000aa"))
    gate.set()
    assert isinstance(opened.result(30), PartHandle) and done.result(30).first
    assert ledger.open_parts == 0


def test_a_verdict_without_a_part_is_refused_alone(ledger):
    gate = hold(ledger)
    wrong = ledger.commit_result(draft(new_id()))
    event = ledger.append("event", EventDraft(kind="fine"))
    gate.set()
    with pytest.raises(LedgerError, match="no part is open"):
        wrong.result(30)
    assert event.result(30).seq == 1 and ledger.healthy


def test_a_body_that_is_too_long_costs_only_itself(ledger):
    gate = hold(ledger)
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
    gate = hold(ledger)
    future = ledger.commit_result(draft("00000000000000aa"))
    clock.ns += 7_000_000
    gate.set()
    assert parse(future.result(30).body).timings_us.commit == 7_000
    ledger.close()
