"""An answer that comes after the gateway's own time limit is none, however it got past the clock.

A process that was stopped (SIGSTOP, a paused machine) finds the answer in its socket before any
timer of its own has run. The clocks here are the test's.
"""

import asyncio

import pytest

from station.gateways.acceptance import accept
from station.gateways.bridge import GRACE_S, Bridge
from station.gateways.handshake import Health
from station.gateways.link_io import StationAddress
from station.gateways.registers import Code, Input
from station.schema import Reason, Result, Timings, Verdict, hex64
from station.schema_ctl import Kind

PREFIX = 7
UP = Health(link=True, ready=True)


def result(number, **changes):
    fields = {
        "line": "l1",
        "station": "s1",
        "epoch": "0" * 16,
        "seq": 1,
        "trigger_id": hex64(PREFIX << 32 | number),
        "part_id": str(number),
        "attempt": 1,
        "verdict": Verdict.OK,
        "reason": Reason.SCORE,
        "late": False,
        "simulated": False,
        "score": 0.25,
        "threshold": 0.5,
        "regions": (),
        "region_count": 0,
        "recipe": "",
        "recipe_sha": "",
        "bundle_sha": "",
        "config_sha": "",
        "t_trigger_us": 1_000_000,
        "t_capture_us": None,
        "t_done_us": 1_040_000,
        "timings_us": Timings(),
        "image_ref": None,
        "desc_state": "none",
    }
    return Result(**fields | changes)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def plc():
    """(bridge, clock, sent) with part 42 in flight since 0 s; its limit is 1.5 s."""
    clock, sent = Clock(), []
    bridge = Bridge(lambda *order: sent.append(order), deadline_ms=1000, prefix=PREFIX, clock=clock)
    bridge.on_health(UP)
    bridge.write([0, 0, 0, 0, 0])
    bridge.write([1, 0, 42, 0, 0])
    return bridge, clock, sent


@pytest.mark.parametrize(("at", "passes"), [(1.0 + GRACE_S, True), (1.501, False), (60.0, False)])
def test_modbus_an_ok_after_the_limit_is_no_answer(plc, at, passes):
    bridge, clock, sent = plc
    assert sent == [(hex64(PREFIX << 32 | 42), "42", 1000)]
    clock.now = at
    bridge.on_result(result(42))
    assert accept(bridge.read(), 42, 0) is passes
    assert bridge.read()[Input.REASON] == (Code.SCORE if passes else Code.NO_ANSWER)
    bridge.on_tick()
    assert accept(bridge.read(), 42, 0) is passes


def test_modbus_a_refusal_after_the_limit_is_no_answer_too(plc):
    bridge, clock, _ = plc
    clock.now = 60.0
    bridge.on_refusal(hex64(PREFIX << 32 | 42), Kind.BUSY)
    assert bridge.read()[Input.REASON] == Code.NO_ANSWER


@pytest.fixture(name="camera")
def part_prefix(request):
    """What the gateway's part ids begin with."""
    return getattr(request, "param", "")


@pytest.fixture(name="opcua")
def opcua_inspect(camera):
    """inspect(part id, deadline, seconds until the answer) of a gateway without server or link."""
    pytest.importorskip("asyncua")
    from station.gateways.opcua import OpcuaGateway, OpcuaSettings

    clock, sent = Clock(), []
    address = StationAddress("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "l1", "s1")
    settings = OpcuaSettings("opc.tcp://127.0.0.1:4840/x", 1000, camera=camera)
    made = OpcuaGateway(address, settings, clock=clock)
    made.prefix, made.health = PREFIX, UP
    made._watch.begun.set()

    def inspect(part_id, deadline_ms, slept_s):
        def trigger(*order):
            sent.append(order)
            clock.now = slept_s
            made.on_result(result(42))

        async def main():
            made._loop = asyncio.get_running_loop()
            return await made.inspect(part_id, 42, deadline_ms)

        made.link.trigger = trigger
        return asyncio.run(main())[1:3], sent

    yield inspect
    made.link.stop()


@pytest.mark.parametrize(("slept_s", "code"), [(1.5, 1), (1.501, 107), (60.0, 107)])
def test_opcua_an_ok_after_the_limit_is_undefined(opcua, slept_s, code):
    """The answer is there before the loop's own timer had its turn."""
    answer, sent = opcua("part", 0, slept_s)
    assert answer == (1 if code == 1 else 0, code)
    assert sent == [(hex64(PREFIX << 32 | 42), "part", 1000)]


@pytest.mark.parametrize(
    ("part_id", "deadline_ms"),
    [("p" * 129, 0), ("two\nlines", 0), ("part", 600_001), ("part", 4_000_000)],
)
def test_opcua_what_the_station_could_not_read_is_refused_at_once(opcua, part_id, deadline_ms):
    assert opcua(part_id, deadline_ms, 0.0) == ((0, 105), [])


@pytest.mark.parametrize(
    ("part_id", "deadline_ms", "sent"),
    [("p" * 128, 600_000, "p" * 128), ("", 1, "42"), (None, 1, "42")],
)
def test_opcua_what_the_station_can_read_is_sent(opcua, part_id, deadline_ms, sent):
    answer, orders = opcua(part_id, deadline_ms, 0.0)
    assert answer == (1, 1)
    assert orders == [(hex64(PREFIX << 32 | 42), sent, deadline_ms)]
