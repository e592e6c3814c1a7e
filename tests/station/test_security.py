"""P10: strangers can do nothing. ZAP, noise, slow connections, huge frames, the audit log."""

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import zmq
from buskit import FastStation
from hypothesis import example, given, settings
from hypothesis import strategies as st
from securitykit import (  # noqa: F401
    GREETING,
    NULL_GREETING,
    READY,
    audit_lines,
    connect,
    key_folder,
    keyed_station,
    noise,
)

from station.client import Client, NoAnswer
from station.keys import (
    ClientIdentity,
    Role,
    load_identity,
    new_client,
    write_secret,
)
from station.schema import hex64
from station.security import Access, Audit, Doorbell, zap_answer

ROOT = Path(__file__).resolve().parents[2]


# -- strangers -----------------------------------------------------------------------------------


def stranger_identity(keys, wrong_server=False):
    public, secret = (half.decode() for half in zmq.curve_keypair())
    server = Access(keys).station.public
    if wrong_server:
        server = zmq.curve_keypair()[0].decode()
    return ClientIdentity(name="x", role="admin", public=public, secret=secret, station=server)


@pytest.mark.parametrize("who", ["no_key", "unknown_key", "wrong_server"])
def test_a_stranger_gets_no_answer_and_hears_nothing(station, tmp_path, keys, who):
    key = None
    if who != "no_key":
        key = tmp_path / "stranger.json"
        write_secret(key, stranger_identity(keys, who == "wrong_server"))
    with connect(station, key, timeout_s=0.7) as stranger:
        with pytest.raises(NoAnswer):
            stranger.hello()
        context = stranger._context
        sub = context.socket(zmq.SUB)
        if key is not None:
            from station.client import apply_identity

            apply_identity(sub, load_identity(key))
        sub.subscribe(b"")
        sub.connect(station.bus.pub_address)
        assert not sub.poll(700)
        sub.close(0)
    what = {line["what"] for line in audit_lines(keys)}
    assert ("refused" if who == "unknown_key" else "handshake_failed") in what


def test_without_the_guard_nobody_gets_in(station, tmp_path):
    with connect(station, tmp_path / "gateway.json") as before:
        assert before.ping()
        station.bus._guard.stop()
        later = connect(station, tmp_path / "gateway.json", timeout_s=1.0)
        with later, pytest.raises(NoAnswer):
            later.hello()
        assert before.ping(), "who is in stays in"


def test_a_guard_that_meets_an_error_refuses_and_goes_on(station, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("the guard's own fault")

    with monkeypatch.context() as during:
        during.setattr("station.security.zap_answer", broken)
        later = connect(station, tmp_path / "gateway.json", timeout_s=1.0)
        with later, pytest.raises(NoAnswer):
            later.hello()
    with connect(station, tmp_path / "gateway.json") as gateway:
        assert gateway.ping()


def test_more_failed_handshakes_than_one_turn_takes_are_all_written_down(
    station, tmp_path, keys, monkeypatch
):
    monkeypatch.setattr(Doorbell, "TURN", 1)
    with connect(station, tmp_path / "gateway.json") as gateway:
        gateway.ping()  # the audit log is there
    for _ in range(4):
        noise(station.bus.ctl_address, NULL_GREETING)
    end = time.monotonic() + 60
    while sum(line["what"] == "handshake_failed" for line in audit_lines(keys)) < 4:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_noise_on_the_wire_changes_nothing(station, tmp_path):
    with connect(station, tmp_path / "gateway.json") as gateway:
        gateway.trigger(hex64(1))
        for address in (station.bus.ctl_address, station.bus.pub_address):
            for data in (
                os.urandom(5000),
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                bytes(64),
                b"\xff" * 4096,
                GREETING,
                NULL_GREETING,
                NULL_GREETING + b"\x04" + bytes([len(READY)]) + READY,
                GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + os.urandom(300),
                GREETING + b"PLAIN".ljust(20, b"\0") + bytes(32) + b"\x04\x0a\x05HELLO\x01a\x01b",
            ):
                noise(address, data)
        assert gateway.trigger(hex64(2)).seq == 2


def test_a_frame_announced_as_one_gigabyte_is_cut_off(tmp_path):
    """Without keys, so that the frame gets as far as it can: MAXMSGSIZE ends the connection."""
    station = FastStation(tmp_path)
    hello = NULL_GREETING + b"\x04" + bytes([len(READY)]) + READY
    huge = hello + b"\x02" + struct.pack(">Q", 1 << 30) + bytes(200_000)
    with Client(station.bus.ctl_address) as client:
        client.trigger(hex64(1))
        for address in (station.bus.ctl_address, station.bus.pub_address):
            noise(address, huge)
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            dealer.connect(station.bus.ctl_address)
            dealer.send(bytes(64 * 1024 + 1))
            assert not dealer.poll(500)
        assert client.trigger(hex64(2)).seq == 2
    station.stop()


def round_trips(client, count, first):
    times = []
    for number in range(count):
        begin = time.perf_counter()
        assert client.trigger(hex64(first + number)).accept
        times.append((time.perf_counter() - begin) * 1e3)
    times.sort()
    return times[count // 2], times[int(count * 0.99)]


# A process of its own: 200 connections that say half a greeting, and every 20 ms a stranger with a
# wrong key, one without a key, noise, or a frame announced as 1 GiB.
STRANGERS = """
import itertools, os, struct, sys, time, zmq
from securitykit import GREETING, NULL_GREETING, READY, noise
import socket
address, server = sys.argv[1], sys.argv[2].encode()
host, port = address.removeprefix("tcp://").split(":")
slow = [socket.create_connection((host, int(port))) for _ in range(200)]
for connection in slow:
    connection.sendall(GREETING[:5])
huge = NULL_GREETING + bytes([4, len(READY)]) + READY + b"\\x02" + struct.pack(">Q", 1 << 30)
context, knocking = zmq.Context(), []
def knock(keys):
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    if keys:
        dealer.curve_publickey, dealer.curve_secretkey = zmq.curve_keypair()
        dealer.curve_serverkey = server
    dealer.connect(address)
    dealer.send(b"{}", zmq.NOBLOCK)
    knocking.append(dealer)
    if len(knocking) > 4:
        knocking.pop(0).close(0)
print("up", flush=True)
for turn in itertools.count():
    (lambda: knock(True), lambda: knock(False), lambda: noise(address, os.urandom(2000), 0),
     lambda: noise(address, huge + bytes(20_000), 0))[turn % 4]()
    time.sleep(0.02)
"""


@pytest.mark.slow
def test_strangers_of_every_kind_do_not_slow_the_verdicts(station, tmp_path, keys, figure):
    """P10. The before and the after are interleaved: a busy test machine would else decide."""
    with connect(station, tmp_path / "gateway.json", timeout_s=20) as gateway:
        round_trips(gateway, 100, 0)
        for attempt in range(3):  # other work on a test machine may spoil a run, not three
            quiet, loud = interleaved(gateway, station, keys, 10_000 * (attempt + 1))
            figure(
                "P10",
                "200 slow connections and a stranger every 20 ms: trigger to verdict p50 "
                f"{quiet[0]:.2f} -> {loud[0]:.2f} ms, p99 {quiet[1]:.2f} -> {loud[1]:.2f} ms; "
                f"{station.bus.audit.total} refusals audited, nobody got in",
            )
            if loud[0] <= quiet[0] * 1.10 and loud[1] <= quiet[1] * 1.5:
                break
        else:
            pytest.fail("strangers slowed the verdicts three times")
    kinds = Counter(line["what"] for line in audit_lines(keys))
    print(dict(kinds))
    assert kinds["refused"] and kinds["handshake_failed"], kinds


def interleaved(gateway, station, keys, first):
    """Medians over 5 turns of (p50, p99), without and with strangers."""
    quiet, loud = [], []
    words = [sys.executable, "-c", STRANGERS, station.bus.ctl_address, Access(keys).station.public]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    for turn in range(5):
        quiet.append(round_trips(gateway, 150, first + 1000 * turn))
        crowd = subprocess.Popen(
            words, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths}
        )
        assert crowd.stdout.readline() == b"up\n"
        loud.append(round_trips(gateway, 150, first + 1000 * turn + 500))
        crowd.kill()
        crowd.wait()
        crowd.stdout.close()
        time.sleep(0.3)
    return [[sorted(pair[n] for pair in side)[2] for n in (0, 1)] for side in (quiet, loud)]


def test_connections_that_say_nothing_are_dropped(station):
    host, port = station.bus.ctl_address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=25) as silent:
        silent.settimeout(25)
        begin = time.monotonic()
        while silent.recv(4096):
            pass
        assert time.monotonic() - begin < 20


# -- parsers -------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=64), max_size=10))
@example([])
@example([b"1.0", b"1", b"isp1", b"", b"", b"CURVE", bytes(32)])
@example([b"1.0", b"1", b"isp1", b"\xff\xfe", b"", b"CURVE", b"short"])
@example([b"1.0", b"1", b"isp1", b"127.0.0.1", b"", b"NULL"])
def test_zap_refuses_whatever_it_does_not_know_and_never_raises(tmp_path_factory, frames):
    access = _access(tmp_path_factory)
    answer = zap_answer(frames, access, Audit(None))
    assert answer[0] == b"1.0" and answer[2] == b"400" and len(answer) == 6
    assert answer[1] == (frames[1] if len(frames) > 1 else b"")


_FOLDER: list = []


def _access(factory):
    if not _FOLDER:
        folder = factory.mktemp("zap")
        new_client(folder, "a", Role.OBSERVER, folder / "a.json")
        _FOLDER.append(folder)
    return Access(_FOLDER[0])


def test_zap_admits_a_known_key_only_in_our_domain(tmp_path, keys):
    from zmq.utils.z85 import decode

    access, public = Access(keys), load_identity(tmp_path / "gateway.json").public
    good = [b"1.0", b"7", b"isp1", b"127.0.0.1", b"", b"CURVE", decode(public)]
    assert zap_answer(good, access, Audit(None)) == [
        b"1.0",
        b"7",
        b"200",
        b"OK",
        public.encode(),
        b"",
    ]
    for index, value in ((0, b"2.0"), (2, b"other"), (2, b""), (5, b"NULL"), (6, bytes(32))):
        bad = [*good[:index], value, *good[index + 1 :]]
        assert zap_answer(bad, access, Audit(None))[2] == b"400"
    assert zap_answer([*good, b"more"], access, Audit(None))[2] == b"400"


def test_the_audit_log_says_from_where_in_at_most_64_characters(tmp_path, keys):
    log = tmp_path / "said.jsonl"
    for address in (b"192.0.2.7", b"a" * 64, b"b" * 65, b"\xff"):
        frames = [b"1.0", b"7", b"isp1", address, b"identity", b"CURVE", bytes(32)]
        assert zap_answer(frames, Access(keys), Audit(log))[2] == b"400"
    zap_answer([b"1.0", b"7", b"isp1", b"cut.off"], Access(keys), Audit(log))
    said = [json.loads(line)["address"] for line in log.read_text().splitlines()]
    assert said[:3] == ["192.0.2.7", "a" * 64, "b" * 64] and said[4] == "cut.off"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_any_frames_leave_the_bus_alive(tmp_path_factory, frames):
    client, stranger = _open_bus(tmp_path_factory)
    stranger.send_multipart(frames)
    assert client.ping().reply == "pong"


_BUS: list = []


def _open_bus(factory):
    if not _BUS:
        station = FastStation(factory.mktemp("noise"))
        client = Client(station.bus.ctl_address)
        stranger = client._context.socket(zmq.DEALER)
        stranger.connect(station.bus.ctl_address)
        _BUS.extend([station, client, stranger])
    return _BUS[1], _BUS[2]


def teardown_module():
    if _BUS:
        _BUS[1].close()
        _BUS[0].stop()


# -- the audit log -------------------------------------------------------------------------------


def test_strangers_cannot_fill_the_disk_with_audit_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(Audit, "MAX_BYTES", 2000)
    audit = Audit(tmp_path / "audit.jsonl")
    for number in range(5000):
        audit.write("refused", number=number)
    assert audit.total == 5000
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert 20 <= len(lines) <= 60
    for second in range(1000):
        audit._second = -second - 2
        audit.write("refused", text="y" * 50)
    assert sum(f.stat().st_size for f in tmp_path.glob("audit*")) < 5000
    assert any("hidden_before" in json.loads(line) for line in lines) or audit._hidden >= 0


def test_an_audit_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    Audit(tmp_path / "folder").write("refused")
