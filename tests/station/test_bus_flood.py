"""A message without end: its sender is cut off, and nobody else is."""

import json
import socket
import struct
import time

import pytest
import zmq
from buskit import FastStation, Raw
from faultkit.station import until
from securitykit import NULL_GREETING

from station import bus_flood
from station.bus import _connection
from station.bus_flood import ALLOWED, ALLOWED_PER_S, MOST, TURN, Flood
from station.schema import new_id
from station.security import Audit

FRAME = b"\x03" + struct.pack(">Q", 60_000) + bytes(60_000)  # a frame, and more will follow


@pytest.fixture
def station(tmp_path):
    made = FastStation(tmp_path, audit=tmp_path / "audit.jsonl")
    yield made
    made.stop()


def stranger(address, kind):
    """A connection that has shaken hands as a socket of this kind and may send frames."""
    host, port = address.removeprefix("tcp://").split(":")
    made = socket.create_connection((host, int(port)), timeout=20)
    made.sendall(NULL_GREETING)
    for want in (64, 2):  # the greeting, and the beginning of READY
        got = b""
        while len(got) < want:
            got += made.recv(want - len(got))
    made.recv(got[1])
    command = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    made.sendall(bytes([4, len(command)]) + command)
    return made


@pytest.mark.parametrize(
    ("which", "kind"), [("ctl_address", b"DEALER"), ("pub_address", b"SUB")], ids=str
)
def test_who_never_ends_a_message_is_cut_off_and_others_are_served(station, tmp_path, which, kind):
    with Raw(station.bus.ctl_address) as line:
        with stranger(getattr(station.bus, which), kind) as endless:
            endless.settimeout(20)
            with pytest.raises(OSError):  # sendall into a closed connection
                while True:
                    endless.sendall(FRAME)
                    time.sleep(0.001)
        assert station.bus.flood.cut_off == 1
        assert line.ask(cmd="TRIGGER", trigger_id=new_id())[0]["reply"] == "accepted"
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    (told,) = [entry for entry in map(json.loads, lines) if entry["what"] == "endless_message"]
    assert told["bytes"] > ALLOWED and "127.0.0.1" in told["address"]


def test_many_whole_messages_may_be_any_number_of_bytes(station):
    with Raw(station.bus.ctl_address) as line:
        for number in range(40):
            line.ask(cmd="PING", rid=f"r{number}", padding="x" * 60_000)
        looked = station.bus.tick_ns
        until(lambda: station.bus.tick_ns > looked + 300_000_000)  # some looks at the connection
        line.ask(cmd="PING")
    assert station.bus.flood.cut_off == 0


class Wire:
    """TCP connections whose bytes and clock are the test's."""

    def __init__(self, monkeypatch):
        self.seen, self.ended, self.now = {}, [], 0.0
        monkeypatch.setattr(bus_flood, "_look", self.seen.get)
        monkeypatch.setattr(bus_flood, "_end", self.ended.append)
        self.flood = Flood(Audit(None), lambda: self.now)

    def come(self, fd, received=0):
        self.seen[fd] = (f"peer-{fd}", received)
        self.flood.came(fd)

    def send(self, fd, count):
        self.seen[fd] = (self.seen[fd][0], self.seen[fd][1] + count)
        self.flood.check()


@pytest.fixture
def wire(monkeypatch):
    return Wire(monkeypatch)


def test_the_bound_counts_from_the_last_whole_message(wire):
    wire.come(5, received=300)
    wire.send(5, ALLOWED)
    assert wire.ended == []
    wire.flood.whole(5)
    wire.send(5, 10)
    wire.send(5, ALLOWED)
    assert wire.ended == []
    wire.send(5, 1)
    assert wire.ended == [5] and wire.flood.cut_off == 1 and len(wire.flood) == 0


def test_an_idle_peer_may_send_heartbeats_for_hours_but_not_for_ever(wire):
    wire.come(5)
    wire.now = 3600.0
    wire.send(5, ALLOWED + int(3600 * ALLOWED_PER_S))
    assert wire.ended == []
    wire.send(5, 1)
    assert wire.ended == [5]
    wire.come(6)
    wire.now = 1e9
    wire.send(6, MOST)
    assert wire.ended == [5]
    wire.send(6, 1)
    assert wire.ended == [5, 6]


def test_a_number_that_means_another_connection_by_now_is_let_alone(wire):
    wire.come(5)
    wire.seen[5] = ("somebody else", 10**9)
    wire.flood.check()
    wire.come(6)
    del wire.seen[6]
    wire.flood.check()
    assert wire.ended == [] and len(wire.flood) == 0
    wire.flood.whole(5)
    wire.flood.came(7)  # gone before it was looked at
    assert len(wire.flood) == 0


def test_all_connections_get_their_turn(wire):
    for fd in range(2 * TURN):
        wire.come(fd)
        wire.seen[fd] = (f"peer-{fd}", ALLOWED + 1)
    wire.flood.check()
    assert wire.ended == list(range(TURN))
    wire.flood.check()
    assert wire.ended == list(range(2 * TURN))


def test_a_frame_that_came_over_no_connection_is_nobodys(wire):
    assert _connection(zmq.Frame(b"x")) == -1
    wire.flood.whole(-1)
    assert len(wire.flood) == 0


def test_what_is_no_tcp_connection_is_nothing(tmp_path):
    with (tmp_path / "file").open("w") as file, socket.socket(socket.AF_UNIX) as other:
        for fd in (file.fileno(), other.fileno(), 1 << 20):
            assert bus_flood._look(fd) is None
            bus_flood._end(fd)
    with socket.socket() as unconnected:
        assert bus_flood._look(unconnected.fileno()) is None
        bus_flood._end(unconnected.fileno())
