"""The document's PLC programs go on after a lost answer and after a new gateway.

No sockets and no waiting: the PLC's reads and writes go straight to the gateway's bridge, and its
clock is the test's.
"""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from station.gateways.bridge import Bridge
from station.gateways.handshake import Handshake, Health, Phase
from station.gateways.registers import Bits, Input, PlcWords, encode, plc_words
from station.schema_ctl import Kind
from tests.station.test_gateways_document import FENCES, example, example_rule
from tests.station.test_gateways_late import UP, result


class Bench:
    """A gateway whose station answers at once, or not at all (`lost`), or does not exist."""

    def __init__(self):
        self.now, self.lost, self.refuse = 0.0, set(), set()
        self.gateway()

    def gateway(self):
        """A new gateway: what the old one knew is gone."""
        self.bridge = Bridge(self.send, deadline_ms=1000, prefix=7, clock=lambda: self.now)
        self.bridge.on_health(UP)

    def send(self, trigger_id, part, _deadline_ms):
        if int(part) in self.refuse:
            self.bridge.on_refusal(trigger_id, Kind.BUSY)
        elif int(part) not in self.lost:
            self.bridge.on_result(result(int(part)))

    # what the example uses of pymodbus and of time
    def connect(self):
        return True

    def read_input_registers(self, _address, count):
        return SimpleNamespace(registers=list(self.bridge.read())[:count])

    def write_registers(self, _address, words):
        self.bridge.write(words)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        self.bridge.on_tick()


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def plc(bench):
    pytest.importorskip("pymodbus")
    code = example("modbus plc")
    code |= {"passes": example_rule, "time": bench, "ModbusTcpClient": lambda *_, **__: bench}
    made = code["Plc"]("127.0.0.1", 0)
    assert made.inspect(1)
    return made


def test_the_python_plc_goes_on_after_one_lost_answer(bench, plc):
    bench.lost = {2}
    assert [plc.inspect(n) for n in (2, 3, 4)] == [False, True, True]


def test_the_python_plc_goes_on_when_it_gave_up_long_before_the_gateway(bench, plc):
    bench.lost = {2}
    assert not plc.inspect(2, deadline_s=0.2)
    assert [plc.inspect(n, 3.0) for n in (3, 4)] == [True, True]


def test_the_python_plc_goes_on_after_a_new_gateway(bench, plc):
    bench.gateway()
    assert [plc.inspect(n) for n in (2, 3)] == [True, True]


def test_the_python_plc_acknowledges_what_another_program_left_behind(bench, plc):
    assert plc.free(bench.now + 1)
    bench.bridge.write([plc.word + 1, 0, 9, 0, plc.ack])  # a PLC that died before its ack
    assert bench.bridge.read()[Input.BITS] & Bits.VALID
    assert [plc.inspect(n) for n in (2, 3)] == [True, True]


def test_the_python_plc_goes_on_after_the_station_was_lost(bench, plc):
    bench.bridge.on_health(Health())
    assert not plc.inspect(2)
    bench.bridge.on_health(UP)
    assert plc.inspect(3)


def test_the_python_plc_survives_a_gateway_that_does_not_answer(bench, plc, monkeypatch):
    from pymodbus.exceptions import ConnectionException

    def gone(*_, **__):
        raise ConnectionException("gone")

    with monkeypatch.context() as patch:
        patch.setattr(bench, "read_input_registers", gone)
        patch.setattr(bench, "write_registers", gone)
        assert not plc.inspect(2)
    assert plc.inspect(3)


def node(code, words, expected):
    """What the function node sends for these input registers: the five words, or None."""
    script = (
        f"const store = {{expected: {expected}}};"
        "const flow = {get: k => store[k], set: (k, v) => { store[k] = v; }};"
        f"const f = new Function('msg', 'flow', {code!r});"
        f"console.log(JSON.stringify(f({{payload: {list(words)}}}, flow)));"
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    return None if answer is None else answer["payload"]["value"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_node_red_flow_frees_the_line_and_disturbs_no_part():
    (code,) = [c for kind, c in FENCES if kind == "javascript" and "keep the line free" in c]
    shake = Handshake(wait_s=1.0)
    shake.station(UP)

    def step(expected=0):
        words = node(code, encode(shake.image(), 5, 1), expected)
        if words is not None:
            assert shake.plc(plc_words(words), 0.0) is None, "it triggers nothing"
        return words

    assert step() is not None and shake.phase is Phase.IDLE  # a new gateway
    assert step() is None  # READY
    shake.plc(PlcWords(1, 42), 0.0)
    assert step() is None  # BUSY
    shake.tick(2.0)
    assert step(expected=42) is None and shake.phase is Phase.VALID  # the other node decides
    assert step() is not None and shake.phase is Phase.IDLE  # nobody waits for it


def test_the_structured_text_clears_in_the_step_that_waits_for_a_part():
    (code,) = [c for kind, c in FENCES if kind == "iecst" and "CASE step OF" in c]
    waiting = code.split("\n10:")[1].split("\n20:")[0].split("IF partHere")[0]
    for line in ("(in[2] AND 16#0003) = 0", "out[0] := in[8];", "out[1] := 0;", "out[2] := 0;"):
        assert line in waiting
    assert "(in[2] AND 16#0004) <> 0" in waiting and "out[3] := in[4];" in waiting
