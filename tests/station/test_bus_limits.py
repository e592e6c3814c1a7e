"""The bus under load and on its ports: busy, rates, open binds, two stations, restarts."""

import json
import socket
import time
from types import SimpleNamespace

import pytest
from buskit import FastStation, Jitter, Raw, subscriber

from engines.errors import ConfigError, InUseError
from station.bus import Bus, BusConfig
from station.bus_desk import Desk
from station.bus_limits import Buckets
from station.client import Client, NoAnswer, Refused
from station.ledger import Ledger
from station.schema import hex64, new_id
from station.security import Audit

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
def test_busy_is_answered_within_5_ms(tmp_path, figure):
    """P4. An answer needs three wake-ups (reader, bus, asker): allowed for as this machine's
    scheduler delays them in the same run, next to nothing where it is idle."""
    for attempt in range(3):
        with Jitter() as jitter:
            busy_ms = overload(tmp_path / str(attempt))
        slowest = busy_ms[int(len(busy_ms) * 0.99)]
        figure(
            "P4",
            f"busy at 2x load: p50 {busy_ms[len(busy_ms) // 2]:.2f}, p99 {slowest:.2f} ms "
            f"(this scheduler wakes up to {jitter.p99_ms:.2f} ms late)",
        )
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


def test_a_limited_command_is_answered_under_its_own_rid():
    sent = []
    floor = SimpleNamespace(
        config=BusConfig("l", "s"), send=lambda _route, frames: sent.append(json.loads(frames[0]))
    )
    observer = SimpleNamespace(name="o", role="observer")
    access = SimpleNamespace(client=lambda _key: observer)
    desk = Desk(floor, None, SimpleNamespace(image=None), access, Audit(None))
    desk._limits = Buckets(0.0, 0.0, lambda: 0.0)
    for data in (b'{"cmd":"PING","rid":"7"}', b"noise"):
        desk.request((b"route",), "key", data)
    desk.stop()
    assert [(s["reply"], s["rid"]) for s in sent] == [("limited", "7"), ("limited", "")]


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
