"""What the tests of strangers and keys share: a connection, bytes on the wire, the audit log."""

import json
import socket
from pathlib import Path

import pytest
from buskit import FastStation

from station.client import Client
from station.keys import Role, new_client


@pytest.fixture(name="keys")
def key_folder(tmp_path):
    """A folder of keys with a client of each role, whose private halves lie in tmp_path."""
    folder = tmp_path / "keys"
    for role in Role:
        new_client(folder, f"the-{role}", role, tmp_path / f"{role}.json")
    return folder


@pytest.fixture(name="station")
def keyed_station(tmp_path, keys):
    found = FastStation(tmp_path, keys=keys)
    yield found
    found.stop()


def connect(station, key: Path | None, **more):
    return Client(station.bus.ctl_address, station.bus.pub_address, keys=key, **more)


def audit_lines(keys):
    return [json.loads(line) for line in (keys / "audit.jsonl").read_text().splitlines()]


def noise(address, data, wait_s=0.2):
    """Send bytes, and what comes back within the time."""
    host, port = address.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        try:
            connection.sendall(data)
            if not wait_s:
                return b""
            connection.settimeout(wait_s)
            return connection.recv(4096)
        except OSError:
            return b""


GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00"
NULL_GREETING = GREETING + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
