"""The Modbus gateway when a station, a neighbour, a key or the gateway itself fails."""

import asyncio
import json
import time
from pathlib import Path

import pytest

pytest.importorskip("pymodbus")

from engines.errors import ConfigError, InUseError
from station.gateways.link_io import StationAddress
from station.gateways.modbus import ModbusGateway, ModbusSettings
from station.keys import Role, new_client
from tests.station.gatekit import (
    GATEKIT,
    Program,
    ScriptedStation,
    free_port,
    truth,
    wait_for,
)
from tests.station.modbuskit import (  # noqa: F401
    BUSY,
    LINK,
    READY,
    VALID,
    Plc,
    Where,
    connect,
    gateway,
    modbus_line,
    modbus_program,
    scripted_station,
)


def time_to_loss(station, plc):
    """The station still answers, but capture, engine or ledger stand still."""
    plc.wait_bits(READY)
    station.frozen = True
    begun = time.monotonic()
    wait_for(lambda: not plc.read()[2] & (READY | LINK))
    took = time.monotonic() - begun
    station.frozen = False
    plc.wait_bits(READY)
    return took


def test_frozen_heartbeats_are_a_lost_station_and_it_comes_back(line):
    station, _, plc = line
    time_to_loss(station, plc)
    assert plc.inspect(11)[1] == truth("11")


@pytest.mark.slow
def test_a_lost_station_shows_within_the_documented_800_ms(line):
    station, _, plc = line
    times = sorted(time_to_loss(station, plc) for _ in range(5))
    print(f"station lost to LINK=0: {times[0]:.2f} to {times[-1]:.2f} s")
    assert times[2] <= 0.85


def test_losing_the_station_withdraws_an_ok_that_was_not_acknowledged(line):
    station, _, plc = line
    part = next(n for n in range(1, 50) if truth(str(n)) == "OK")
    plc.wait_bits(READY)
    plc.word += 1
    plc.write(part)
    assert plc.passes(plc.wait_bits(VALID), part)
    station.frozen = True
    words = wait_for(lambda: (w := plc.read())[2] & LINK == 0 and w)
    assert words[3] == 0x9696 and words[9] == 106 and not plc.passes(words, part)


def test_a_verdict_that_never_comes_is_refused(line):
    station, _, plc = line
    station.silent = True
    assert plc.inspect(5) == (False, "REFUSED", 107)


def test_a_repeated_id_is_refused_as_duplicate(line):
    _, _, plc = line
    part = next(n for n in range(1, 50) if truth(str(n)) == "OK")
    assert plc.inspect(part)[0]
    assert plc.inspect(part) == (False, "REFUSED", 103)


def test_an_ok_on_recorded_pictures_passes_only_when_allowed(tmp_path):
    part = next(n for n in range(1, 50) if truth(str(n)) == "OK")
    for allowed in (False, True):
        made = ScriptedStation(tmp_path / f"{allowed}.db", simulated=True)
        with gateway(made, allow_simulated=allowed) as door:
            plc = Plc(door.port)
            assert plc.inspect(part)[0] is allowed
            plc.close()
        made.close()


def test_only_registers_exist_and_the_input_registers_cannot_be_written(line):
    _, _, plc = line
    assert plc.client.read_coils(0, count=1).isError()
    assert plc.client.read_discrete_inputs(0, count=1).isError()
    assert plc.client.write_coil(0, True).isError()
    assert plc.client.read_input_registers(0, count=22).isError()
    assert plc.client.write_registers(4, [1, 2]).isError()
    assert not plc.client.read_holding_registers(0, count=5).isError()


def test_a_port_in_use_is_one_clear_sentence(station, line):
    async def second():
        made = ModbusGateway(
            StationAddress(station.ctl, station.pub, "l1", "s1"),
            ModbusSettings("127.0.0.1", line[1].port, 1000),
        )
        try:
            await made.start()
        finally:
            await made.close()

    with pytest.raises(InUseError, match="cannot listen on"):
        asyncio.run(second())


def test_two_stations_and_their_gateways_do_not_mix_parts(tmp_path):
    """Names where one is the other's beginning, the same ids, interleaved."""
    a = ScriptedStation(tmp_path / "a.db", name="st1")
    b = ScriptedStation(tmp_path / "b.db", name="st10")
    with gateway(a, name="st1") as left, gateway(b, name="st10") as right:
        plcs = Plc(left.port), Plc(right.port)
        for part in range(1, 21):
            for plc, station in zip(plcs, (a, b), strict=True):
                assert plc.inspect(part)[1] == truth(str(part))
                assert station.ledger.last_seq("result") == part
        for plc in plcs:
            plc.close()
    a.close()
    b.close()


def test_a_gateway_does_not_listen_to_another_station_at_its_address(tmp_path):
    other = ScriptedStation(tmp_path / "o.db", name="other")
    with gateway(other, name="s1") as made:
        plc = Plc(made.port)
        time.sleep(1.0)
        assert plc.read()[2] & (READY | LINK) == 0
        plc.close()
    other.close()


def test_only_a_gateways_key_may_trigger(tmp_path):
    """CURVE: the role gateway inspects, an observer is denied, without a key there is no link."""
    keys = tmp_path / "keys"
    for role in (Role.GATEWAY, Role.OBSERVER):
        new_client(keys, f"the-{role}", role, tmp_path / f"{role}.json")
    station = ScriptedStation(tmp_path / "c.db", keys=keys)
    part = next(n for n in range(1, 50) if truth(str(n)) == "OK")
    with gateway(station, keys=tmp_path / "observer.json") as made:
        plc = Plc(made.port)
        assert plc.inspect(part) == (False, "REFUSED", 110)
        plc.close()
    with gateway(station) as made:
        plc = Plc(made.port)
        time.sleep(1.0)
        assert plc.read()[2] & (READY | LINK) == 0
        plc.close()
    with gateway(station, keys=tmp_path / "gateway.json") as made:
        plc = Plc(made.port)
        assert plc.inspect(part) == (True, "OK", 1)
        plc.close()
    station.close()


def test_a_missing_key_file_is_one_clear_sentence(station):
    address = StationAddress(station.ctl, station.pub, "l1", "s1", keys=Path("nowhere.json"))
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        ModbusGateway(address, ModbusSettings("127.0.0.1", 0, 1000))


@pytest.fixture
def toml(tmp_path):
    (tmp_path / "station.toml").write_text('[station]\nline = "l1"\nname = "s1"\n')
    return tmp_path


def test_a_killed_gateway_comes_back_without_the_old_ok(station, toml):
    port = free_port()
    part = next(n for n in range(1, 50) if truth(str(n)) == "OK")
    with modbus_program(station, port, toml) as program:
        connect(port).close()
        plc = Plc(port)
        plc.wait_bits(READY)
        plc.word += 1
        plc.write(part)
        assert plc.passes(plc.wait_bits(VALID), part)  # an OK, not yet acknowledged
        program.kill()
        program.start()
        plc.client = connect(port)
        for _ in range(50):
            plc.write(part)  # a PLC that writes its words in every cycle
            words = plc.read()
            assert not plc.passes(words, part) and not words[2] & (VALID | BUSY)
            time.sleep(0.02)
        assert station.ledger.last_seq("result") == 1  # and nothing was inspected again
        assert plc.inspect(part + 1)[1] == truth(str(part + 1))
        plc.close()


def test_a_killed_station_is_not_ready_then_back_and_no_verdict_is_lost(toml):
    port = free_port()
    where = Where(*(f"tcp://127.0.0.1:{free_port()}" for _ in range(2)))
    options = json.dumps(where._asdict() | {"work_s": 0.3})
    with (
        Program(GATEKIT, toml / "k.db", "--options", options, log=toml / "station.log") as station,
        modbus_program(where, port, toml),
    ):
        connect(port).close()
        plc = Plc(port)
        assert plc.inspect(1)[1] == truth("1")
        plc.wait_bits(READY)
        plc.word += 1
        plc.write(2)
        plc.wait_bits(BUSY)
        station.kill()
        words = plc.wait_bits(VALID)
        assert words[3] == 0x9696 and not plc.passes(words, 2)
        assert not words[2] & (READY | LINK)
        station.start()
        plc.ack = 2
        plc.write(2)
        assert plc.inspect(3, 60)[1] == truth("3")
        assert plc.inspect(4)[1] == truth("4")
        plc.close()
