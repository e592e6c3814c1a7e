"""An integrator's PLC over bare pymodbus, and the gateway it speaks to."""

import asyncio
import threading
import time
from collections import namedtuple
from contextlib import contextmanager

import pytest

pytest.importorskip("pymodbus")
from pymodbus.client import ModbusTcpClient

from station.gateways.link_io import StationAddress
from station.gateways.modbus import ModbusGateway, ModbusSettings
from tests.station.gatekit import Program, ScriptedStation, gateway_words, wait_for

READY, BUSY, VALID, SYNCED, LINK = 1, 2, 4, 8, 16
VERDICTS = {0x5A5A: "OK", 0x3C3C: "NG", 0x6969: "UNDECIDED", 0x0F0F: "ERROR", 0x9696: "REFUSED"}

Where = namedtuple("Where", "ctl pub")


class Plc:
    """An integrator's PLC: nothing of ours, only numbers from the document."""

    def __init__(self, port):
        self.client = ModbusTcpClient("127.0.0.1", port=port, timeout=2)
        assert self.client.connect()
        self.word, self.ack = self.read()[8], 0
        self.beat, self.beat_at = None, time.monotonic()
        self.write(0)

    def read(self):
        answer = self.client.read_input_registers(0, count=21)
        assert not answer.isError(), answer
        words = answer.registers
        if words[1] != getattr(self, "beat", None):
            self.beat, self.beat_at = words[1], time.monotonic()
        return words

    def write(self, part):
        words = [self.word, part >> 16, part & 0xFFFF, self.ack >> 16, self.ack & 0xFFFF]
        assert not self.client.write_registers(0, words).isError()

    def wait_bits(self, bits, timeout=60):
        return wait_for(lambda: (w := self.read())[2] & bits == bits and w, timeout, 0.002)

    def passes(self, words, part):
        key = words[3] ^ 0x36C9
        return (
            words[0] == 0x4901
            and words[20] == words[1] ^ 0xFFFF
            and time.monotonic() - self.beat_at <= 0.5
            and words[2] & 0xFF9E == VALID | SYNCED | LINK
            and words[4] << 16 | words[5] == part != 0
            and words[6] == words[4] ^ key
            and words[7] == words[5] ^ key
            and words[3] == 0x5A5A
        )

    def inspect(self, part, timeout=20):
        """(passed, verdict word's name, reason) of one part, acknowledged.

        A machine that is starved loses heartbeats (102, 106), as it must: then it is asked again.
        """
        for _ in range(5):
            answer = self.once(part, timeout)
            if answer[2] not in (102, 106):
                break
        return answer

    def once(self, part, timeout):
        self.wait_bits(READY)
        self.word = (self.word + 1) & 0xFFFF
        self.write(part)

        def answered():
            words = self.read()
            return words[2] & VALID and words[4] << 16 | words[5] == part and words

        words = wait_for(answered, timeout, 0.001)
        passed = self.passes(words, part)
        self.ack = part
        self.write(part)
        return passed, VERDICTS[words[3]], words[9]

    def close(self):
        self.client.close()


@contextmanager
def gateway(station, line="l1", name="s1", **more):
    """The gateway in a thread with its own loop."""
    address = StationAddress(station.ctl, station.pub, line, name, keys=more.pop("keys", None))
    ready, loop, held = threading.Event(), asyncio.new_event_loop(), {}

    async def main():
        held["gateway"] = made = ModbusGateway(
            address, ModbusSettings("127.0.0.1", 0, more.pop("deadline_ms", 1000), **more)
        )
        held["stop"] = asyncio.Event()
        await made.start()
        ready.set()
        try:
            await made.run(held["stop"])
        finally:
            await made.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield held["gateway"]
    finally:
        loop.call_soon_threadsafe(held["stop"].set)
        thread.join(5)
        loop.close()


@pytest.fixture(name="station")
def scripted_station(tmp_path):
    made = ScriptedStation(tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.fixture(name="line")
def modbus_line(station):
    """(station, gateway, PLC), connected."""
    with gateway(station) as made:
        plc = Plc(made.port)
        yield station, made, plc
        plc.close()


def modbus_program(station, port, tmp_path):
    return Program(*gateway_words(station, port, tmp_path), log=tmp_path / "modbus.log")


def connect(port):
    def attempt():
        client = ModbusTcpClient("127.0.0.1", port=port, timeout=2)
        return client if client.connect() else client.close()

    return wait_for(attempt, 60, 0.1)
