"""The ledger's decisions, without a ledger: what is written for a part and what is late."""

import pytest
from buskit import draft, opening

from station.ledger_state import (
    Identity,
    Moment,
    OpenPart,
    build_entry,
    build_result,
    due_draft,
    is_late,
    restart_draft,
)
from station.schema import DescDraft, EventDraft, Reason, Region, Timings, Verdict

WHO = Identity("line1", "st1", "0123456789abcdef")
TRIGGER = "00000000000000aa"


def a_part(**changes):
    opened = opening(TRIGGER, received_ns=1_000_000, deadline_ms=5, t_trigger_us=77, **changes)
    return OpenPart(opened, "P", 3)


@pytest.mark.parametrize(("mono_ns", "late"), [(0, False), (6_000_000, False), (6_000_001, True)])
def test_late_is_strictly_after_the_deadline(mono_ns, late):
    assert is_late(a_part().opening, mono_ns) is late


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_only_a_judged_part_in_time_keeps_ok_or_ng(verdict, late):
    reason = {"UNDECIDED": "recipe", "ERROR": "camera"}.get(verdict, "score")
    given = draft(TRIGGER, 0.4, verdict=verdict, reason=reason)
    due = due_draft(given, late)
    if late and verdict in ("OK", "NG"):
        assert (due.verdict, due.reason) == (Verdict.UNDECIDED, Reason.DEADLINE)
        assert (due.score, due.threshold) == (given.score, given.threshold)
    else:
        assert due is given


def test_every_field_of_a_result_comes_from_where_it_should():
    part = a_part(
        simulated=True,
        recipe="cells",
        recipe_sha="aa" * 32,
        bundle_sha="bb" * 32,
        config_sha="cc" * 32,
        threshold=0.7,
    )
    region = Region(x=1, y=2, w=3, h=4, peak=0.5, area=6)
    given = draft(
        TRIGGER,
        0.9,
        regions=(region,),
        region_count=9,
        t_capture_us=88,
        timings_us=Timings(queue=1, acquire=2, infer=3, commit=999),
        image_ref="img",
        desc_state="queued",
    )
    now = Moment(mono_ns=4_000_000, wall_us=99)
    result = build_result(WHO, part, given, seq=5, now=now, handed_ns=1_500_000)
    assert result.model_dump(mode="json") == {
        "proto": "isp/1",
        "line": "line1",
        "station": "st1",
        "stream": "result",
        "epoch": "0123456789abcdef",
        "seq": 5,
        "trigger_id": TRIGGER,
        "part_id": "P",
        "attempt": 3,
        "verdict": "NG",
        "reason": "score",
        "late": False,
        "simulated": True,
        "score": 0.9,
        "threshold": 0.5,
        "regions": [region.model_dump()],
        "region_count": 9,
        "recipe": "cells",
        "recipe_sha": "aa" * 32,
        "bundle_sha": "bb" * 32,
        "config_sha": "cc" * 32,
        "t_trigger_us": 77,
        "t_capture_us": 88,
        "t_done_us": 99,
        "timings_us": {"queue": 1, "acquire": 2, "infer": 3, "commit": 2500},
        "image_ref": "img",
        "desc_state": "queued",
    }


def test_without_a_threshold_of_its_own_the_opening_tells_it():
    given = draft(TRIGGER, 0.9, verdict="ERROR", reason="infer", threshold=None)
    now = Moment(2_000_000, 9)
    result = build_result(WHO, a_part(threshold=0.7), given, seq=1, now=now, handed_ns=0)
    assert result.threshold == 0.7
    own = draft(TRIGGER, 0.9, threshold=0.2)
    assert build_result(WHO, a_part(), own, seq=1, now=now, handed_ns=0).threshold == 0.2


def test_late_is_written_and_a_clock_never_makes_negative_time():
    late = build_result(
        WHO, a_part(), draft(TRIGGER), seq=1, now=Moment(6_000_001, 9), handed_ns=7_000_000
    )
    assert late.late and late.verdict == "UNDECIDED" and late.reason == "deadline"
    assert late.timings_us.commit == 0 and not late.accept
    in_time = build_result(
        WHO, a_part(), draft(TRIGGER), seq=1, now=Moment(6_000_000, 9), handed_ns=6_000_000
    )
    assert not in_time.late and in_time.accept


def test_a_part_that_lost_its_station_is_an_error():
    given = restart_draft(TRIGGER)
    assert (given.trigger_id, given.verdict, given.reason) == (TRIGGER, "ERROR", "restart")
    assert given.score is None


def test_entries_carry_identity_seq_and_time():
    desc = build_entry(
        WHO,
        DescDraft(trigger_id=TRIGGER, part_id="P", sentence="s", source="template"),
        seq=4,
        now=Moment(1, 2),
    )
    event = build_entry(WHO, EventDraft(kind="x", data={"a": 1}), seq=6, now=Moment(1, 3))
    assert (desc.stream, desc.seq, desc.t_us, desc.epoch) == ("desc", 4, 2, WHO.epoch)
    assert (event.stream, event.seq, event.t_us, event.line, event.station) == (
        "event",
        6,
        3,
        "line1",
        "st1",
    )
    assert event.data == {"a": 1} and desc.sentence == "s"
