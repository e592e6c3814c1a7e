"""A gateway over a connection that breaks: a verdict may be late, never lost, never another's."""

import contextlib
import socket
import threading
from collections import Counter

import pytest

from station.gateways.handshake import Health
from station.gateways.link import StationLink
from station.gateways.link_io import StationAddress
from station.schema import hex64
from tests.station.gatekit import ScriptedStation, truth, wait_for


class Wire:
    """TCP between the link and the station's ctl; `cut()` breaks what is connected now, and
    `deaf` lets through what the station says before a cut, but nothing to the gateway."""

    def __init__(self, address):
        host, port = address.removeprefix("tcp://").split(":")
        self._target, self._pairs, self.deaf = (host, int(port)), [], False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                self._pairs.append((near, far))
                for pair in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source, sink, back):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not (back and self.deaf):
                    sink.sendall(data)

    def cut(self):
        pairs, self._pairs = self._pairs, []
        self.deaf = False
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self):
        self._server.close()
        self.cut()


class Listener:
    def __init__(self):
        self.health, self.results, self.refusals = Health(), [], Counter()

    def on_health(self, health):
        self.health = health

    def on_result(self, result):
        self.results.append(result)

    def on_refusal(self, _trigger_id, kind):
        self.refusals[str(kind)] += 1

    def on_tick(self):
        pass


@pytest.fixture
def line(tmp_path):
    station = ScriptedStation(tmp_path / "ledger.db", work_s=0.4)
    wire, listener = Wire(station.ctl), Listener()
    link = StationLink(StationAddress(wire.address, station.pub, "l1", "s1"), listener)
    link.start()
    wait_for(lambda: listener.health.ready)
    yield station, wire, listener, link
    link.stop()
    wire.close()
    station.close()


def accepted(link):
    """Whether the link knows that its part in flight was accepted."""
    return any(asked.repeat_at is not None for asked in list(link._open.values()))


def test_a_verdict_comes_over_the_new_connection_when_the_old_one_broke(line):
    station, wire, listener, link = line
    for number in range(1, 4):
        link.trigger(hex64(number), str(number), 20_000)
        wait_for(lambda: accepted(link), step_s=0.001)
        wire.cut()
        wait_for(lambda number=number: len(listener.results) == number)
        wait_for(lambda: listener.health.ready)
    assert [r.trigger_id for r in listener.results] == [hex64(n) for n in (1, 2, 3)]
    assert [str(r.verdict) for r in listener.results] == [truth(str(n)) for n in (1, 2, 3)]
    assert station.ledger.last_seq("result") == 3, "asked again is not inspected again"
    assert not listener.refusals


def test_a_trigger_that_was_not_accepted_is_never_sent_again(line):
    """Inspected late it would be its neighbour: the PLC refuses it instead."""
    station, wire, listener, link = line
    wire.deaf = True
    link.trigger(hex64(9), "9", 1000)
    wait_for(lambda: station.ledger.last_seq("result") == 1)
    wire.cut()
    wait_for(lambda: listener.health.ready)
    wait_for(lambda: not link._open, 30)
    assert listener.results == [] and station.ledger.last_seq("result") == 1


def test_a_gateway_acknowledges_what_is_stored_so_that_old_rows_may_go(line, monkeypatch):
    station, _wire, listener, link = line
    monkeypatch.setattr("station.gateways.link.ACK_EVERY_S", 0.05)
    link.trigger(hex64(7), "7", 5000)
    wait_for(lambda: listener.results)
    seq = listener.results[0].seq

    def acknowledged():
        cursors = station.ledger.cursors.values()
        return any(held.get("result", 0) >= seq for held in cursors)

    wait_for(acknowledged)
    assert station.ledger.retain(2**52).result(10) >= seq
