"""ISP/1 bodies and commands: golden bytes, refusals, parsers that only raise ValueError."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from station import schema, schema_ctl
from station.schema import (
    REASONS,
    Desc,
    DescDraft,
    Event,
    EventDraft,
    Opening,
    Reason,
    Region,
    Result,
    ResultDraft,
    Status,
    Stream,
    Thumb,
    Timings,
    Verdict,
    body,
    hex64,
    new_id,
    parse,
    topic,
)

GOLDEN = Path(__file__).parent / "golden"
HEAD = {"line": "line1", "station": "st1", "epoch": "0123456789abcdef", "seq": 7}


def a_result(**changes) -> Result:
    fields = {
        **HEAD,
        "trigger_id": "00000000000000ff",
        "part_id": "P-1/Ä",
        "attempt": 2,
        "verdict": Verdict.NG,
        "reason": Reason.SCORE,
        "late": False,
        "simulated": True,
        "score": 0.75,
        "threshold": 0.5,
        "regions": (Region(x=1, y=2, w=3, h=4, peak=0.9, area=11),),
        "region_count": 1,
        "recipe": "cells",
        "recipe_sha": "ab" * 32,
        "bundle_sha": "",
        "config_sha": "",
        "t_trigger_us": 1_700_000_000_000_000,
        "t_capture_us": None,
        "t_done_us": 1_700_000_000_050_000,
        "timings_us": Timings(queue=1, acquire=2, infer=3, commit=4),
        "image_ref": "00000000000000ff",
        "desc_state": "queued",
    }
    return Result(**(fields | changes))


EXAMPLES = {
    "result": a_result(),
    "desc": Desc(
        **HEAD,
        trigger_id="00000000000000ff",
        part_id="P-1",
        attempt=2,
        sentence="A crack, 3 mm, at the top left.",
        source="template",
        t_us=5,
        confidence="high",
    ),
    "event": Event(**HEAD, kind="late_answer", text="x", data={"ms": 12}, t_us=5),
    "status": Status(
        **HEAD,
        ready=True,
        busy=False,
        mode="triggered",
        hb=3,
        t_us=5,
        last_seq={"result": 7, "desc": 0, "event": 1},
        cursors={"plc": {"result": 6}},
    ),
    "thumb": Thumb(**HEAD, w=2, h=2, jpeg="aGk="),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_bytes_are_the_golden_ones(name):
    """A change of these bytes is a change of the protocol: readers and old ledgers see it."""
    assert body(EXAMPLES[name]) == (GOLDEN / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_body_survives_its_own_bytes(name):
    assert parse(body(EXAMPLES[name])) == EXAMPLES[name]
    assert body(parse(body(EXAMPLES[name]))) == body(EXAMPLES[name])


def test_readers_ignore_fields_they_do_not_know():
    data = json.loads(body(a_result())) | {"from_the_future": 1}
    assert parse(json.dumps(data).encode()) == a_result()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["score", "threshold"])
def test_not_finite_numbers_are_refused(number, field):
    with pytest.raises(ValidationError):
        a_result(**{field: number})
    with pytest.raises(ValidationError):
        Region(x=0, y=0, w=1, h=1, peak=number, area=1)
    raw = body(a_result()).replace(b'"score":0.75', b'"score":NaN')
    with pytest.raises(ValueError):
        parse(raw)


def test_a_body_is_at_most_16_kib():
    regions = tuple(
        Region(x=9999, y=9999, w=9999, h=9999, peak=0.123456789012345678, area=99999999)
        for _ in range(64)
    )
    biggest = a_result(
        regions=regions,
        region_count=2**53 - 1,
        part_id="Ä" * 128,
        recipe="Ä" * 128,
        image_ref="a" * 160,
    )
    assert len(body(biggest)) < schema.MAX_BODY, "no honest verdict may be too long to be stored"
    with pytest.raises(ValueError, match="16384"):
        body(Event(**HEAD, kind="x", t_us=0, data={str(n): "y" * 2000 for n in range(32)}))
    with pytest.raises(ValueError, match="16384"):
        parse(b" " * (schema.MAX_BODY + 1))
    exact = b" " * (schema.MAX_BODY - len(body(a_result()))) + body(a_result())
    assert parse(exact) == a_result()


def test_the_limits_are_the_last_sizes_that_are_allowed():
    text, more = "y" * 1000, {str(n): "y" * 1000 for n in range(15)}
    lacking = schema.MAX_BODY - len(body(Event(**HEAD, kind="x", t_us=0, text=text, data=more)))
    more["0"] += "y" * lacking
    event = Event(**HEAD, kind="x", t_us=0, text=text, data=more)
    assert len(body(event)) == schema.MAX_BODY and parse(body(event)) == event
    with pytest.raises(ValueError, match="16384"):
        body(event.model_copy(update={"text": text + "y"}))
    ping = b'{"cmd": "PING", "rid": "1", "session": "00000000000000ff"}'
    exact = ping + b" " * (schema_ctl.MAX_COMMAND - len(ping))
    assert schema_ctl.parse_command(exact).cmd == "PING"
    with pytest.raises(ValueError, match="65536"):
        schema_ctl.parse_command(exact + b" ")


def test_an_ok_at_its_very_threshold_is_one_and_stays_a_draft():
    fields = {"verdict": "OK", "reason": "score", "score": 0.5, "threshold": 0.5}
    draft = ResultDraft.model_validate({"trigger_id": "00000000000000ff", **fields})
    assert isinstance(draft, ResultDraft) and draft.score == draft.threshold == 0.5


def test_at_most_64_regions_and_the_count_tells_the_rest():
    region = Region(x=0, y=0, w=1, h=1, peak=0.5, area=1)
    with pytest.raises(ValidationError):
        a_result(regions=(region,) * 65, region_count=65)
    assert a_result(regions=(region,) * 64, region_count=900).region_count == 900


@pytest.mark.parametrize("verdict", list(Verdict))
@pytest.mark.parametrize("reason", list(Reason))
def test_each_verdict_has_its_reasons_and_no_other(verdict, reason):
    fits = reason in REASONS[verdict]
    draft = {
        "trigger_id": new_id(),
        "verdict": verdict,
        "reason": reason,
        "score": 0.1,
        "threshold": 0.2,
    }
    if fits:
        assert ResultDraft(**draft).reason is reason
        assert a_result(**draft).reason is reason
    else:
        with pytest.raises(ValidationError):
            ResultDraft(**draft)
        with pytest.raises(ValidationError):
            a_result(**draft)


def test_the_reasons_are_those_of_the_line_document():
    assert {v: set(map(str, r)) for v, r in REASONS.items()} == {
        "OK": {"score"},
        "NG": {"score"},
        "UNDECIDED": {"deadline", "queue_full", "recipe", "implausible_frame"},
        "ERROR": {"camera", "stale_frame", "infer", "not_finite", "restart", "config"},
    }


@pytest.mark.parametrize(
    "figures",
    [
        {"score": None, "threshold": 0.5},
        {"score": 0.1, "threshold": None},
        {"score": 0.6, "threshold": 0.5},
        {"score": None, "threshold": None},
    ],
)
def test_an_ok_that_contradicts_its_figures_cannot_exist(figures):
    with pytest.raises(ValidationError):
        ResultDraft(trigger_id=new_id(), verdict="OK", reason="score", **figures)
    with pytest.raises(ValidationError):
        a_result(verdict="OK", **figures)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_accept_is_ok_in_time_and_nothing_else(verdict, late):
    reason = sorted(REASONS[verdict])[0]
    result = a_result(verdict=verdict, reason=reason, score=0.1, late=late)
    assert result.accept is (verdict == "OK" and not late)


def test_ids_are_16_hex_digits():
    assert hex64(0) == "0" * 16 and hex64(2**64 - 1) == "f" * 16 and len(new_id()) == 16
    assert hex64(255) == "00000000000000ff"
    for number in (-1, 2**64):
        with pytest.raises(ValueError):
            hex64(number)
    for bad in ("", "ff", "00000000000000FF", "g" * 16, "0" * 17, "0" * 16 + "\n", 255, None):
        with pytest.raises(ValidationError):
            ResultDraft(trigger_id=bad, verdict="ERROR", reason="infer")


def test_topics_end_in_a_slash_so_that_st1_is_not_st10():
    assert topic("l", "st1", Stream.RESULT) == b"isp1/l/st1/result/"
    assert topic("l", "st1") == b"isp1/l/st1/"
    assert not topic("l", "st10", "result").startswith(topic("l", "st1"))


def test_the_deadline_counts_from_receipt_on_the_monotonic_clock():
    opening = Opening(trigger_id=new_id(), received_ns=1_000, deadline_ms=3, t_trigger_us=0)
    assert opening.deadline_ns == 3_001_000


@pytest.mark.parametrize("draft", [Opening, ResultDraft, DescDraft, EventDraft])
def test_what_the_station_is_told_may_hold_no_unknown_field(draft):
    assert draft.model_config["extra"] == "forbid"


def test_commands_forbid_unknown_fields_and_loose_types():
    good = {"cmd": "TRIGGER", "rid": "1", "session": new_id(), "trigger_id": new_id()}
    assert schema_ctl.parse_command(json.dumps(good).encode()).cmd == "TRIGGER"
    for change in (
        {"deadline": 5},
        {"deadline_ms": "5"},
        {"deadline_ms": 0},
        {"deadline_ms": 600_001},
        {"wait": 1},
        {"cmd": "trigger"},
        {"cmd": None},
        {"proto": "isp/2"},
        {"rid": ""},
        {"rid": "x" * 65},
        {"session": "1"},
        {"part_id": "a\nb"},
        {"part_id": ""},
    ):
        with pytest.raises(ValueError):
            schema_ctl.parse_command(json.dumps(good | change).encode())
    with pytest.raises(ValueError, match="65536"):
        schema_ctl.parse_command(b" " * 65_537)


def test_a_changeover_may_name_its_camera():
    good = {"cmd": "RECIPE", "rid": "1", "session": new_id(), "action": "prepare", "recipe": "b"}
    assert schema_ctl.parse_command(json.dumps(good).encode()).camera is None
    named = schema_ctl.parse_command(json.dumps(good | {"camera": "top-2"}).encode())
    assert (named.camera, named.recipe, named.force) == ("top-2", "b", False)
    for camera in ("", "a/b", 1):
        with pytest.raises(ValueError):
            schema_ctl.parse_command(json.dumps(good | {"camera": camera}).encode())


def test_every_schema_is_json_schema_of_the_model():
    schemas = schema_ctl.json_schemas()
    assert {"Result", "Desc", "Event", "Status", "Thumb", "Reply", "Trigger", "Fetch"} <= set(
        schemas
    )
    for name, text in schemas.items():
        assert text["type"] == "object" and text["title"] == name
    json.dumps(schemas)


@settings(max_examples=300)
@given(st.binary(max_size=400) | st.text(max_size=300).map(str.encode))
def test_noise_is_a_value_error_and_nothing_else(data):
    for parser in (parse, schema_ctl.parse_command):
        with pytest.raises(ValueError):
            parser(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        "rid",
        "session",
        "trigger_id",
        "part_id",
        "deadline_ms",
        "wait",
        "stream",
        "epoch",
        "from_seq",
        "max",
        "upto_seq",
        "image_ref",
        "client",
        "proto",
        "action",
        "mode",
    ]
)


@settings(max_examples=300)
@given(
    st.sampled_from(
        ["HELLO", "TRIGGER", "FETCH", "ACK", "LATEST", "GET", "RECIPE", "MODE", "PING"]
    ),
    st.dictionaries(FIELDS, JSON, max_size=6),
)
def test_any_json_is_a_command_or_a_value_error(cmd, fields):
    data = json.dumps({"cmd": cmd, **fields}).encode()
    try:
        command = schema_ctl.parse_command(data)
    except ValueError:
        return
    assert command.cmd == cmd


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(EXAMPLES)),
    st.dictionaries(
        st.sampled_from(sorted(Result.model_fields) + sorted(Status.model_fields)), JSON, max_size=4
    ),
)
def test_any_change_of_a_body_parses_to_a_lawful_model_or_raises(name, changes):
    data = json.dumps(json.loads(body(EXAMPLES[name])) | changes).encode()
    try:
        model = parse(data)
    except ValueError:
        return
    if isinstance(model, Result) and model.verdict == "OK":
        assert model.score <= model.threshold


def test_the_rid_of_a_bad_command_is_found_only_if_it_is_lawful():
    bad = {"cmd": "TRIGGER", "rid": "t-7", "trigger_id": "x"}
    assert schema_ctl.rid_of(json.dumps(bad).encode()) == "t-7"
    for rid in ("", "a b", "x" * 65, 7, None, ["t"]):
        assert schema_ctl.rid_of(json.dumps(bad | {"rid": rid}).encode()) == ""
    for other in (b"", b"[", b"[" * 4000, b'"rid"', b"null", b"{}", b'["rid"]', b'{"rid":"\xff"}'):
        assert schema_ctl.rid_of(other) == ""
    exact = b'{"rid":"a"}'.ljust(schema_ctl.MAX_PEEK)
    assert schema_ctl.rid_of(exact) == "a" and schema_ctl.rid_of(exact + b" ") == ""


@given(st.binary(max_size=2000))
def test_a_reply_parser_only_raises_value_error(data):
    with pytest.raises(ValueError):
        schema_ctl.Reply.model_validate_json(data)


def test_replies_leave_out_what_does_not_apply():
    reply = schema_ctl.Reply(line="l", station="s", reply="busy", rid="4", trigger_id=new_id())
    assert set(json.loads(schema_ctl.reply_bytes(reply))) == {
        "proto",
        "line",
        "station",
        "reply",
        "rid",
        "trigger_id",
    }
