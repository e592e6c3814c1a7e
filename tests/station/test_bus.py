"""The bus (ISP/1): verbs, stored answers, sessions, status."""

import json
import threading
import time
from itertools import pairwise

import pytest
import zmq
from busfixtures import fast_station, station_client  # noqa: F401
from buskit import FastStation, Raw, next_of, subscriber

from station.bus_sessions import MAX_ANSWERS, MAX_SESSIONS, Sessions
from station.client import Client, Refused
from station.schema import MAX_BODY, EventDraft, Result, StatusFacts, hex64, new_id, parse


@pytest.fixture
def raw(station):
    """A DEALER without our client: what an integrator would write."""
    with Raw(station.bus.ctl_address) as found:
        yield found


# -- verbs ---------------------------------------------------------------------------------------


def test_a_trigger_is_accepted_and_then_answered_with_the_stored_bytes(station, raw):
    trigger = new_id()
    accepted = raw.ask(cmd="TRIGGER", trigger_id=trigger, part_id="P1")[0]
    assert (accepted["reply"], accepted["part_id"], accepted["attempt"]) == ("accepted", "P1", 1)
    raw.socket.poll(15_000)
    frames = raw.socket.recv_multipart()
    assert len(frames) == 1
    page = station.ledger.fetch("result", station.ledger.epoch, 1).result(30)
    assert frames == list(page.bodies) and parse(frames[0]).accept


def test_a_req_client_gets_exactly_one_answer(station):
    with Raw(station.bus.ctl_address, zmq.REQ) as req:
        for number in range(20):
            result = req.ask(cmd="TRIGGER", trigger_id=hex64(number + 1), wait=True)[0]
            assert result["stream"] == "result" and result["seq"] == number + 1
        assert req.ask(cmd="TRIGGER", trigger_id=hex64(1), wait=True)[0]["reply"] == "duplicate"
        station.ready = False
        assert req.ask(cmd="TRIGGER", trigger_id=new_id(), wait=True)[0]["reply"] == "not_ready"
        assert req.ask(cmd="PING")[0]["reply"] == "pong"


def test_the_same_bytes_on_the_bus_in_the_ledger_and_through_fetch(station, client):
    sub = subscriber(station.bus.pub_address, b"isp1/line1/st1/result/")
    answered = [client.trigger(hex64(n + 1), f"bad{n}" if n % 3 else f"P{n}") for n in range(60)]
    live = [next_of(sub, "result") for _ in range(60)]
    fetched = list(client.fetch_all("result"))
    stored = list(station.ledger.fetch("result", station.ledger.epoch, 1, 256).result(30).bodies)
    assert live == fetched == stored
    assert [parse(data) for data in live] == answered
    assert [result.seq for result in answered] == list(range(1, 61))
    sub.close(0)


def test_fetch_latest_get_status_ping(station, client):
    station.pictures["img1"] = ({"media_type": "image/png", "x": 3}, b"\x89PNG...")
    assert client.latest("result") is None
    result = client.trigger(new_id())
    assert client.latest("result") == result
    assert client.get("img1") == ({"media_type": "image/png", "x": 3}, b"\x89PNG...")
    assert client.get("img2") is None
    status = client.status()
    assert status.ready and status.epoch == station.ledger.epoch
    assert status.last_seq == {"result": 1, "desc": 0, "event": 0}
    assert client.ping().t_us > 0
    assert client.ack("result", 1).upto_seq == 1
    assert client.hello().cursors == {"result": 1}
    assert client.status().cursors == {"test": {"result": 1}}
    with pytest.raises(Refused, match="ends at 1"):
        client.ack("result", 2)
    reply, bodies = client.fetch("result", 2)
    assert reply.end and bodies == []
    station.ledger.append("event", EventDraft(kind="x")).result(30)
    assert client.latest("event").kind == "x"


def test_fetch_of_another_epoch_says_gone(raw, station):
    page = raw.ask(cmd="FETCH", stream="result", epoch="f" * 16, from_seq=1)
    assert page[0]["reply"] == "gone" and page[0]["epoch"] == station.ledger.epoch


def test_a_huge_picture_is_not_sent(station, client):
    station.pictures["big"] = ({"media_type": "image/png"}, bytes((4 << 20) + 1))
    station.pictures["max"] = ({"media_type": "image/png"}, bytes(4 << 20))
    assert client.get("big") is None
    assert len(client.get("max")[1]) == 4 << 20


def test_admin_commands_reach_the_daemon_and_are_answered(station, client):
    reply = client.admin("RECIPE", action="prepare", recipe="cells")
    assert reply.data == {"ms": 1} and station.admins[0].recipe == "cells"
    client.admin("MODE", mode="free_run")
    client.admin("RESET")
    assert [a.cmd for a in station.admins] == ["RECIPE", "MODE", "RESET"]


# -- sessions and stored answers -----------------------------------------------------------------


def test_nothing_goes_without_hello(raw):
    for cmd in ({"cmd": "PING"}, {"cmd": "TRIGGER", "trigger_id": new_id()}, {"cmd": "STATUS"}):
        assert raw.ask(**cmd, session=new_id())[0]["reply"] == "hello_first"
    raw.session = None
    assert raw.ask(cmd="PING")[0]["reply"] == "hello_first"


def test_a_repeated_request_is_answered_again_not_done_again(station, raw):
    trigger = new_id()
    raw.send(cmd="TRIGGER", trigger_id=trigger, rid="r1")
    first = [raw.receive(), raw.receive()]
    raw.send(cmd="TRIGGER", trigger_id=trigger, rid="r1")
    again = [raw.receive(), raw.receive()]
    assert first == again and first[1][0]["trigger_id"] == trigger
    assert station.triggers == [trigger]


def test_a_repeat_before_the_result_moves_the_answer_to_the_new_connection(tmp_path):
    station = FastStation(tmp_path, infer_s=0.4)
    with Raw(station.bus.ctl_address, zmq.REQ) as lost, Raw(station.bus.ctl_address) as new:
        new.session = lost.session
        request = {"cmd": "TRIGGER", "trigger_id": new_id(), "wait": True, "rid": "r1"}
        lost.send(**request)
        time.sleep(0.1)
        new.send(**request)
        assert new.receive()[0]["trigger_id"] == request["trigger_id"]
        assert lost.receive(0.2) is None
        assert len(station.triggers) == 1
    station.stop()


def test_a_rid_belongs_to_one_request(raw):
    raw.ask(cmd="TRIGGER", trigger_id=new_id(), rid="r1")
    raw.receive()
    answer = raw.ask(cmd="TRIGGER", trigger_id=new_id(), rid="r1")[0]
    assert answer["reply"] == "error" and "rid" in answer["text"]


@pytest.mark.parametrize(
    "bad",
    [{"part_id": "x" * 200}, {"part_id": ""}, {"deadline_ms": 700_000}, {"trigger_id": "abc"}],
    ids=str,
)
def test_a_bad_trigger_is_answered_under_its_own_rid(station, raw, bad):
    """Without it whoever asked would wait until the deadline of the part."""
    answer = raw.ask(cmd="TRIGGER", rid="t-7", **{"trigger_id": new_id()} | bad)[0]
    assert (answer["reply"], answer["rid"]) == ("error", "t-7")
    assert next(iter(bad)) in answer["text"] and station.triggers == []


def test_a_restarted_gateway_never_gets_an_old_ok(station, raw):
    trigger = new_id()
    raw.ask(cmd="TRIGGER", trigger_id=trigger)
    assert raw.receive()[0]["verdict"] == "OK"
    with Raw(station.bus.ctl_address) as restarted:
        answer = restarted.ask(cmd="TRIGGER", trigger_id=trigger)
        assert answer[0]["reply"] == "duplicate"
        assert "verdict" not in json.dumps(answer[0]) and len(answer) == 1
        assert restarted.receive(0.2) is None
        assert (
            restarted.ask(cmd="TRIGGER", trigger_id=trigger, wait=True)[0]["reply"] == "duplicate"
        )


def test_a_trigger_that_is_still_open_is_a_duplicate_for_everybody_else(tmp_path):
    station = FastStation(tmp_path, infer_s=0.3)
    with Raw(station.bus.ctl_address) as one, Raw(station.bus.ctl_address) as other:
        trigger = new_id()
        assert one.ask(cmd="TRIGGER", trigger_id=trigger)[0]["reply"] == "accepted"
        assert other.ask(cmd="TRIGGER", trigger_id=trigger)[0]["reply"] == "duplicate"
        assert one.ask(cmd="TRIGGER", trigger_id=trigger)[0]["reply"] == "duplicate"
        assert one.receive()[0]["verdict"] == "OK", "the first asker still gets its answer"
        assert other.receive(0.2) is None
    station.stop()


def test_sessions_are_bounded_per_client_and_floods_do_not_spill():
    now = [0.0]
    sessions = Sessions(lambda: now[0])
    mine = sessions.hello("plc", "plc")
    for _ in range(MAX_SESSIONS * 3):
        sessions.hello("stranger", "x")
    assert sessions.find("plc", mine.id) is mine and len(sessions) == MAX_SESSIONS + 1
    assert sessions.find("stranger", mine.id) is None, "a session belongs to its key"
    now[0] = 3000.0
    sessions.find("plc", mine.id)
    now[0] = 4000.0
    assert sessions.expire() == MAX_SESSIONS and sessions.find("plc", mine.id) is mine
    sessions.drop_client("plc")
    assert sessions.find("plc", mine.id) is None and sessions.find("plc", None) is None


def test_stored_answers_are_bounded_but_open_ones_stay():
    session = Sessions(lambda: 0.0).hello("plc", "plc")
    still_open, _ = session.begin("open", b"d", (b"r",), False)
    for number in range(MAX_ANSWERS * 2):
        entry, new = session.begin(str(number), b"d", (b"r",), False)
        assert new
        entry.add([b"x"], True)
    assert len(session.entries) <= MAX_ANSWERS + 1
    assert session.begin("open", b"d", (b"q",), False) == (still_open, False)
    assert still_open.route == (b"q",)
    assert still_open.add([b"1"], True) == [[b"1"]] and still_open.add([b"2"], True) == []


# -- status and health ---------------------------------------------------------------------------


def test_status_comes_five_times_a_second_and_hb_moves(station):
    sub = zmq.Context.instance().socket(zmq.SUB)
    sub.subscribe(b"isp1/line1/st1/status/")
    sub.connect(station.bus.pub_address)
    seen = []
    end = time.monotonic() + 2.2
    while time.monotonic() < end:
        if sub.poll(300):
            seen.append(json.loads(sub.recv_multipart()[1]))
    sub.close(0)
    assert 4 <= len(seen) <= 22  # 11 on an idle machine; what was late comes at once
    assert all(b["hb"] > a["hb"] and b["seq"] > a["seq"] for a, b in pairwise(seen))


def test_ready_is_false_while_the_ledger_is_not_healthy(station, client):
    assert client.status().ready
    station.ledger._fail([], "a fault for the test")
    status = client.status()
    assert not status.ready and "a fault for the test" in status.faults[0]
    with pytest.raises(Refused, match="not_ready"):
        client.trigger(new_id())
    end = time.monotonic() + 30
    while not client.status().ready:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert client.trigger(new_id()).accept


def test_the_worst_status_still_fits_its_body(station, client):
    for number in range(40):
        name = f"{number}-{'x' * 60}"
        for stream in ("result", "event"):
            acked = station.ledger.ack(name, stream, 0)
    acked.result(10)
    facts = station.status().model_copy(update={"faults": ("Ä" * 500,) * 32})
    station.status = lambda: facts
    status = client.status()
    assert len(status.faults) == 12 and len(status.cursors) == 32


def test_a_daemon_that_raises_is_not_ready_and_the_bus_goes_on(station, client):
    def broken(*_):
        raise RuntimeError("a bug")

    station.status = broken
    assert not client.status().ready
    station.on_trigger = broken
    with pytest.raises(Refused, match="not_ready"):
        client.trigger(new_id())
    station.on_admin = broken
    with pytest.raises(Refused, match="internal"):
        client.admin("RESET")
    assert client.ping()


def test_a_bare_listener_needs_no_code_of_ours(station, client):
    """pyzmq and json only; sees every verdict of a run, in order, none wrong."""
    seen, ready = [], threading.Event()

    def listen():
        sub = zmq.Context.instance().socket(zmq.SUB)
        sub.setsockopt(zmq.SUBSCRIBE, b"isp1/line1/st1/")
        sub.connect(station.bus.pub_address)
        while len(seen) < 1000 and sub.poll(20_000):
            body = json.loads(sub.recv_multipart()[1])
            ready.set()  # a status: from now on nothing is missed
            if body["stream"] == "result":
                seen.append(body)
        sub.close(0)

    listener = threading.Thread(target=listen)
    listener.start()
    assert ready.wait(20)
    answered = {}
    for first in range(0, 1000, 100):  # a slow station takes no more than 1,000 unanswered
        for number in range(first, first + 100):
            client.trigger_start(hex64(number), f"bad{number}" if number % 7 == 0 else None)
        for answer in client.answers(60):
            if isinstance(answer, Result):
                answered[answer.trigger_id] = answer
            if len(answered) == first + 100:
                break
    listener.join(30)
    assert [row["seq"] for row in seen] == list(range(1, 1001))
    for row in seen:
        assert row["verdict"] == ("NG" if int(row["trigger_id"], 16) % 7 == 0 else "OK")
        assert answered[row["trigger_id"]].verdict == row["verdict"]


def test_thumbs_are_counted_and_bounded(station, client):
    bodies = client.subscribe(("thumb", "status"), timeout_s=30.0)
    assert next(bodies).stream == "status"
    station.bus.publish_thumb(b"jpeg", 4, 3, new_id())
    thumb = next(body for body in bodies if body is None or body.stream == "thumb")
    assert (thumb.w, thumb.h, thumb.seq) == (4, 3, 1)
    with pytest.raises(ValueError, match="limit"):
        station.bus.publish_thumb(bytes(MAX_BODY), 1, 1)


def test_what_is_asked_while_stopping_does_not_hold_the_stop(station):
    begin = time.monotonic()
    with Client(station.bus.ctl_address) as client:
        client.hello()
        for number in range(50):
            client.trigger_start(hex64(number))
        station.bus.stop()
    assert time.monotonic() - begin < 5 and not station.bus.alive
    station.bus.start = None  # stop() of the fixture finds it ended


def test_status_facts_are_checked():
    with pytest.raises(ValueError):
        StatusFacts(ready=True, busy=False, mode="x", hb=-1)
