"""The bus: every verb, stored answers, catch-up, limits, and a subscriber without our code."""

import json
import socket
import threading
import time
from itertools import pairwise

import pytest
import zmq
from buskit import FastStation, Jitter, draft, next_of, opening, subscriber

from engines.errors import ConfigError, InUseError
from station.bus import Bus, BusConfig
from station.bus_limits import Buckets
from station.bus_sessions import MAX_ANSWERS, MAX_SESSIONS, Sessions
from station.client import Client, NoAnswer, Refused
from station.ledger import Ledger
from station.schema import MAX_BODY, EventDraft, Result, StatusFacts, hex64, new_id, parse


@pytest.fixture
def station(tmp_path):
    found = FastStation(tmp_path)
    yield found
    found.stop()


@pytest.fixture
def client(station):
    with Client(station.bus.ctl_address, station.bus.pub_address, name="test") as found:
        yield found


@pytest.fixture
def raw(station):
    """A DEALER without our client: what an integrator would write."""
    with Raw(station.bus.ctl_address) as found:
        yield found


class Raw:
    def __init__(self, address, kind=zmq.DEALER):
        self.context = zmq.Context()
        self.socket = self.context.socket(kind)
        self.socket.linger = 0
        self.socket.connect(address)
        self.session, self.count = None, 0

    def __enter__(self):
        self.session = self.ask(cmd="HELLO", client="raw")[0]["session"]
        return self

    def __exit__(self, *_):
        self.context.destroy(0)

    def send(self, **fields):
        self.count += 1
        request = {"rid": str(self.count), "session": self.session} | fields
        self.socket.send(json.dumps({k: v for k, v in request.items() if v is not None}).encode())

    def receive(self, timeout_s=15.0):
        if not self.socket.poll(int(timeout_s * 1000)):
            return None
        frames = self.socket.recv_multipart()
        return [json.loads(frames[0]), *frames[1:]]

    def ask(self, **fields):
        self.send(**fields)
        return self.receive()


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
    assert 4 <= len(seen) <= 12
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
    for number in range(1000):
        client.trigger_start(hex64(number), f"bad{number}" if number % 7 == 0 else None)
    answered = {}
    for answer in client.answers(60):
        if isinstance(answer, Result):
            answered[answer.trigger_id] = answer
        if len(answered) == 1000:
            break
    listener.join(30)
    assert [row["seq"] for row in seen] == list(range(1, 1001))
    for row in seen:
        assert row["verdict"] == ("NG" if int(row["trigger_id"], 16) % 7 == 0 else "OK")
        assert answered[row["trigger_id"]].verdict == row["verdict"]


# -- load ----------------------------------------------------------------------------------------


def overload(tmp_path):
    """One part in flight, 50 ms each (20/s), triggered at 40/s: how long `busy` takes, in ms."""
    tmp_path.mkdir(exist_ok=True)
    station = FastStation(tmp_path, infer_s=0.05, in_flight=1)
    sent, busy_ms, verdicts, refused = {}, [], 0, 0
    with Raw(station.bus.ctl_address) as line:
        begin = time.monotonic()
        for number in range(120):
            while time.monotonic() < begin + number / 40:
                answer = line.receive(max(0.0, begin + number / 40 - time.monotonic()))
                if answer is None:
                    continue
                if answer[0].get("reply") == "busy":
                    busy_ms.append((time.monotonic() - sent[answer[0]["rid"]]) * 1e3)
                    refused += 1
                verdicts += "verdict" in answer[0]
            line.send(cmd="TRIGGER", trigger_id=hex64(number + 1), rid=str(number + 1))
            sent[str(number + 1)] = time.monotonic()
        while (answer := line.receive(0.5)) is not None:
            refused += answer[0].get("reply") == "busy"
            verdicts += "verdict" in answer[0]
    rows = station.ledger.last_seq("result")
    station.stop()
    busy_ms.sort()
    print(
        f"busy: {len(busy_ms)}, p50 {busy_ms[len(busy_ms) // 2]:.2f} ms, max {busy_ms[-1]:.2f} ms"
    )
    assert refused >= 40 and verdicts == rows == 120 - refused
    return busy_ms


def test_excess_triggers_are_answered_busy_and_the_others_get_their_verdict(tmp_path):
    overload(tmp_path)


@pytest.mark.slow
def test_busy_is_answered_within_5_ms(tmp_path):
    """P4. An answer needs three wake-ups (reader, bus, asker): allowed for as this machine's
    scheduler delays them in the same run, next to nothing where it is idle."""
    for attempt in range(3):
        with Jitter() as jitter:
            busy_ms = overload(tmp_path / str(attempt))
        slowest = busy_ms[int(len(busy_ms) * 0.99)]
        print(f"busy p99 {slowest:.2f} ms; this scheduler wakes up to {jitter.p99_ms:.2f} ms late")
        if slowest < 5.0 + 3 * jitter.p99_ms:
            return
    pytest.fail(f"busy took up to {busy_ms[-1]:.1f} ms")


def test_observers_may_look_only_so_often(tmp_path):
    station = FastStation(tmp_path, image_per_s=5.0)
    station.pictures["a"] = ({"media_type": "image/png"}, b"x")
    with Client(station.bus.ctl_address) as client:
        answers = []
        for _ in range(30):
            try:
                answers.append(client.get("a") is not None)
            except Refused as refused:
                answers.append(str(refused.reply.reply))
        assert answers[:10] == [True] * 10 and answers.count("limited") >= 10
        assert client.trigger(new_id()).accept, "looking costs no verdict"
    station.stop()


def test_buckets_fill_again_and_forget_names():
    now = [0.0]
    buckets = Buckets(2.0, 3.0, lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    assert buckets.take("b")
    now[0] = 0.5
    assert buckets.take("a") and not buckets.take("a")
    now[0] = 100.0
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    for number in range(Buckets.MAX_NAMES * 2):
        buckets.take(str(number))
    assert len(buckets._level) <= Buckets.MAX_NAMES


# -- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["pub", "ctl"])
def test_a_port_in_use_is_one_sentence_and_exit_code_9(tmp_path, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        ledger = Ledger(tmp_path / "l.db", line="l", station="s")
        addresses = {"pub": "tcp://127.0.0.1:*", "ctl": "tcp://127.0.0.1:*"} | {which: address}
        with pytest.raises(InUseError, match=address) as caught:
            Bus(BusConfig("l", "s", **addresses), ledger, None).start()
        assert caught.value.code == 9
        ledger.close()


@pytest.mark.parametrize(
    "address",
    [
        "tcp://*:5561",
        "tcp://0.0.0.0:1",
        "tcp://192.168.0.4:1",
        "tcp://eth0:1",
        "tcp://127.example.org:1",
        "tcp://[::]:1",
    ],
)
def test_an_open_bind_without_keys_is_a_configuration_error(tmp_path, address):
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    for addresses in ({"pub": address}, {"ctl": address}):
        with pytest.raises(ConfigError, match="station keys new"):
            Bus(BusConfig("l", "s", **addresses), ledger, None)
        Bus(BusConfig("l", "s", **addresses, insecure=True), ledger, None)
    ledger.close()


def test_an_address_that_makes_no_sense_is_a_configuration_error(tmp_path):
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    with pytest.raises(ConfigError, match="cannot listen"):
        Bus(BusConfig("l", "s", pub="tcp://127.0.0.1:99999"), ledger, None).start()
    ledger.close()


def test_two_stations_on_one_machine_do_not_mix(tmp_path):
    one = FastStation(tmp_path, station="st1")
    ten = FastStation(tmp_path, station="st10")
    sub = subscriber(one.bus.pub_address, b"isp1/line1/st1/")
    sub.connect(ten.bus.pub_address)
    with Client(one.bus.ctl_address) as a, Client(ten.bus.ctl_address) as b:
        assert (a.hello().station, b.hello().station) == ("st1", "st10")
        for number in range(20):
            b.trigger(hex64(number))
            a.trigger(hex64(number))
    seen = []
    while sub.poll(20_000) and sum(row["stream"] == "result" for row in seen) < 20:
        seen.append(json.loads(sub.recv_multipart()[1]))
    sub.close(0)
    assert {row["station"] for row in seen} == {"st1"}
    assert sum(row["stream"] == "result" for row in seen) == 20
    one.stop()
    ten.stop()


def test_a_client_of_nobody_says_so(tmp_path):
    with Client("tcp://127.0.0.1:9", timeout_s=0.2) as client:
        with pytest.raises(NoAnswer, match="HELLO"):
            client.hello()
        with pytest.raises(NoAnswer):
            client.ping()


def test_a_client_finds_a_restarted_station_by_itself(tmp_path):
    station = FastStation(tmp_path)
    ctl, pub = station.bus.ctl_address, station.bus.pub_address
    with Client(ctl) as client:
        assert client.trigger(hex64(1)).seq == 1
        station.stop()
        station = FastStation(tmp_path, ctl=ctl, pub=pub)
        deadline = time.monotonic() + 40
        while True:
            try:
                client.ping()
                break
            except NoAnswer:
                assert time.monotonic() < deadline
        with pytest.raises(Refused, match="duplicate"):
            client.trigger(hex64(1))
        assert client.trigger(hex64(2)).seq == 2
    station.stop()


# -- P6: a consumer that was away gets all it missed ---------------------------------------------


def produce(station, count, first=0):
    for number in range(first, first + count):
        station.ledger.open_part(opening(hex64(number)))
        last = station.ledger.commit_result(draft(hex64(number)))
    last.result(60)


def collect(client, count, **more):
    seen = []
    for body in client.subscribe(("result",), timeout_s=30.0, **more):
        assert body is not None, f"silence after {len(seen)} of {count}"
        seen.append(body.seq)
        if len(seen) == count:
            return seen
    return seen


def test_a_late_joiner_gets_everything_once_and_in_order(station, client):
    produce(station, 700)
    writer = threading.Thread(target=produce, args=(station, 700, 700))
    writer.start()
    assert collect(client, 1400, since={"result": 0}) == list(range(1, 1401))
    writer.join()


def test_a_watcher_from_now_on_sees_only_what_comes(station, client):
    produce(station, 5)
    bodies = client.subscribe(("result", "status"), timeout_s=30.0)
    assert next(bodies).stream == "status"
    produce(station, 3, 5)
    results = (body.seq for body in bodies if body is not None and body.stream == "result")
    assert [next(results) for _ in range(3)] == [6, 7, 8]


def test_a_lost_last_message_is_revealed_by_the_status(station, client):
    """Not one result reaches the watcher by PUB; the status and FETCH bring them all."""
    publish = station.bus._publish
    station.bus._publish = lambda stream, data: publish(stream, data) if stream == "status" else 0
    threading.Timer(0.5, produce, (station, 10)).start()
    assert collect(client, 10, since={"result": 0}) == list(range(1, 11))


def test_gaps_of_any_kind_are_filled(station, client):
    publish, count = station.bus._publish, [0]

    def lossy(stream, data):
        count[0] += 1
        if stream == "status" or count[0] % 3 == 0 or count[0] % 50 > 40:
            publish(stream, data)

    station.bus._publish = lossy
    threading.Timer(0.3, produce, (station, 1000)).start()
    assert collect(client, 1000, since={"result": 0}) == list(range(1, 1001))


def test_a_watcher_that_sleeps_until_pub_overflows_gets_all(station, client):
    """The reader stands still while 5,000 bodies pass: more than any queue holds."""
    bodies = client.subscribe(("result",), since={"result": 0}, timeout_s=30.0)
    produce(station, 1)
    assert next(bodies).seq == 1
    produce(station, 5000, 1)
    assert [next(bodies).seq for _ in range(5000)] == list(range(2, 5002))


def test_a_flood_while_the_bus_stands_still_ends_nothing(station):
    """5,000 requests from one peer while the owner thread hangs for longer than the heartbeats
    allow: its queue runs full, connections are given up, and the station lives on."""
    plain = station.status

    def hanging():
        station.status = plain
        time.sleep(4.0)
        return plain()

    with Raw(station.bus.ctl_address) as peer, Client(station.bus.ctl_address) as other:
        peer.socket.setsockopt(zmq.SNDHWM, 10_000)
        station.status = hanging
        time.sleep(0.4)
        for _ in range(5000):
            peer.send(cmd="PING")
        time.sleep(4.5)
        other.hello()
        assert other.trigger(new_id()).accept
    assert station.bus.alive


def test_a_new_ledger_begins_a_new_epoch_for_the_watcher(tmp_path):
    station = FastStation(tmp_path)
    ctl, pub = station.bus.ctl_address, station.bus.pub_address
    seen = []
    with Client(ctl, pub, timeout_s=0.5) as client:
        produce(station, 3)
        for body in client.subscribe(("result",), since={"result": 0}, timeout_s=0.3):
            if body is not None:
                seen.append((body.epoch, body.seq))
            if len(seen) == 3 and body is not None:
                station.stop()
                for piece in tmp_path.glob("st1.db*"):
                    piece.unlink()
                station = FastStation(tmp_path, ctl=ctl, pub=pub)
                produce(station, 2)
            if len(seen) == 5:
                break
    assert [seq for _, seq in seen] == [1, 2, 3, 1, 2]
    assert len({epoch for epoch, _ in seen}) == 2
    station.stop()


def test_silence_is_told_and_the_watch_goes_on(tmp_path):
    station = FastStation(tmp_path)
    ctl, pub = station.bus.ctl_address, station.bus.pub_address
    with Client(ctl, pub, timeout_s=0.3) as client:
        bodies = client.subscribe(("result", "status"), timeout_s=0.6)
        while next(bodies) is None:
            pass
        station.stop()
        begin = time.monotonic()
        while next(bodies) is not None:
            assert time.monotonic() < begin + 20
        station = FastStation(tmp_path, ctl=ctl, pub=pub)
        produce(station, 2)
        seqs = []
        while len(seqs) < 2:
            body = next(bodies)
            seqs += [body.seq] if body is not None and body.stream == "result" else []
            assert time.monotonic() < begin + 60
        assert seqs == [1, 2]
    station.stop()


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
