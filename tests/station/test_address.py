"""Addresses of a station: a wrong one is one sentence, whatever program it was given to."""

import pytest
import zmq
from faultkit.station import parts_folder, station
from typer.testing import CliRunner

from engines.errors import ConfigError
from station.address import check_address, reach
from station.cli import app
from station.client import Client
from station.gateways.handshake import Health
from station.gateways.link import StationLink
from station.gateways.link_io import Sockets, StationAddress

GOOD = "tcp://127.0.0.1:5560"
BAD = ["localhost:5560", "tcp://localhost", "tcp://localhost:", "tcp://:5560x", "http://a:1", ""]
BAD += [
    "tcp://*:5560",
    "tcp://a b:1",
    "tcp://a:65536",
    "tcp://a:0",
    "tcp://a:123456",
    "tcp://:5560",
]


@pytest.mark.parametrize("address", BAD)
def test_what_cannot_be_connected_to_is_one_sentence(address):
    for attempt in (
        lambda: check_address(address),
        lambda: Client(address),
        lambda: Client(GOOD, address),
        lambda: StationAddress(address, GOOD, "l", "s"),
        lambda: StationAddress(GOOD, address, "l", "s"),
    ):
        with pytest.raises(ConfigError, match=r"needs tcp://host:port"):
            attempt()


@pytest.mark.parametrize(
    "address",
    [GOOD, "tcp://station-2.local:65535", "tcp://[::1]:5560", "ipc:///tmp/x", "inproc://x"],
)
def test_what_can_be_connected_to_stays_as_it_is(address):
    assert check_address(address) == address


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "tcp://127.0.0.1:7"),
        ("0.0.0.0", "tcp://127.0.0.1:7"),
        ("*", "tcp://127.0.0.1:7"),
        ("::", "tcp://[::1]:7"),
        ("fe80::1", "tcp://[fe80::1]:7"),
        ("line-2", "tcp://line-2:7"),
    ],
)
def test_a_bound_host_is_reached_at(host, address):
    assert reach(host, 7) == address == check_address(address)


@pytest.mark.parametrize(
    "words",
    [
        ("tail", "--ctl", "localhost:5560"),
        ("gateway", "modbus", "--ctl", "localhost:5560"),
        ("gateway", "opcua", "--pub", "localhost:5561"),
        ("sim-plc", "--ctl", "localhost:5560"),
    ],
    ids=" ".join,
)
def test_the_command_line_says_what_an_address_needs(tmp_path, words):
    config = tmp_path / "station.toml"
    config.write_text("")
    done = CliRunner().invoke(app, [*words, "--config", str(config)])
    assert isinstance(done.exception, ConfigError) and "tcp://host:port" in str(done.exception)


class Listener:
    def __init__(self):
        self.told = []

    def on_health(self, health: Health):
        self.told.append(health)


def test_a_link_that_gets_no_socket_says_what_ended_it_and_can_be_stopped(monkeypatch):
    """The second of its sockets fails: the first must not hold up the context's end."""
    made = []

    def scarce(self, context, kind):
        if made:
            raise zmq.ZMQError(24)  # too many open files
        made.append(kind)
        return whole(self, context, kind)

    whole = Sockets._made
    monkeypatch.setattr(Sockets, "_made", scarce)
    link = StationLink(StationAddress(GOOD, "tcp://127.0.0.1:5561", "l", "s"), Listener())
    link.start()
    link._thread.join(20)
    assert isinstance(link.failed, zmq.ZMQError) and not link.alive
    link.stop()


def test_an_ipv6_address_is_reached(tmp_path):
    folder = parts_folder(tmp_path / "in", 1)
    with station(tmp_path, str(folder), bus={"host": "::1", "pub_port": 0, "ctl_port": 0}) as (
        daemon,
        client,
    ):
        assert daemon.bus.ctl_address.startswith("tcp://[::1]")
        client.ping()
