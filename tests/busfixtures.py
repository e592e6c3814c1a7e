"""Fixtures of the bus tests; apart from buskit, which killable stations import without pytest."""

import pytest
from buskit import FastStation

from station.client import Client


@pytest.fixture(name="station")
def fast_station(tmp_path):
    found = FastStation(tmp_path)
    yield found
    found.stop()


@pytest.fixture(name="client")
def station_client(station):
    with Client(station.bus.ctl_address, station.bus.pub_address, name="test") as found:
        yield found
