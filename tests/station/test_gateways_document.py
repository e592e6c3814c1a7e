"""docs/integrator.md is the contract: its numbers are the code's, its examples run as printed."""

import asyncio
import re
import shutil
import subprocess
import time
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from station.cli import app
from station.gateways.acceptance import STALE_MS, accept
from station.gateways.bridge import BEAT_S, GRACE_S
from station.gateways.opcua_model import EVENT_FIELDS, NAMESPACE, Evaluation
from station.gateways.registers import (
    BOND_KEY,
    HOLDING_COUNT,
    INPUT_COUNT,
    MAP_VERSION,
    Bits,
    Code,
    Holding,
    Image,
    Input,
    Outcome,
    Word,
    encode,
)
from station.keys import Role
from station.schema_ctl import MAX_PAGE, Kind, ModeCommand, RecipeCommand
from station.security import ALLOWED
from tests.station.gatekit import ROOT, ScriptedStation, free_port, truth
from tests.station.modbuskit import gateway

TEXT = (ROOT / "docs" / "integrator.md").read_text()
FENCES = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.DOTALL)


def example(name):
    """The namespace an example of the document leaves behind."""
    (code,) = [code for kind, code in FENCES if kind == "python" and f"# example: {name}\n" in code]
    space = {}
    exec(compile(code, f"docs/integrator.md ({name})", "exec"), space)
    return space


def section(number):
    return TEXT.split(f"### {number} ")[1].split("\n### ")[0].split("\n## ")[0]


def test_every_register_is_in_the_table_at_its_address():
    found = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", section("1.1"), re.MULTILINE)
    assert [(int(a), n) for a, n in found] == [(int(r), r.name) for r in Input]
    found = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", section("1.5"), re.MULTILINE)
    assert [(int(a), n) for a, n in found] == [(int(r), r.name) for r in Holding]
    assert len(Input) == INPUT_COUNT <= 125 and len(Holding) == HOLDING_COUNT


def test_every_bit_verdict_word_and_reason_is_in_its_table():
    found = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", section("1.2"), re.MULTILINE)
    assert {name: 1 << int(bit) for bit, name in found} == {b.name: int(b) for b in Bits}
    found = re.findall(r"^\| (0x[0-9A-F]{4}) \| ([A-Z]+) \|", section("1.3"), re.MULTILINE)
    assert {name: int(word, 16) for word, name in found} == {w.name: int(w) for w in Word}
    found = re.findall(r"\| (\d+) \| ([a-z_]+)", section("1.4"))
    assert {n: int(c) for c, n in found} == {c.name.lower(): int(c) for c in Code}


def test_the_numbers_of_the_rule_are_the_codes():
    assert f"MAP_VERSION = 0x{MAP_VERSION:04X}" in TEXT and f"0x{BOND_KEY:04X}" in TEXT
    assert f"last {STALE_MS} ms" in TEXT and BEAT_S == 0.1 and GRACE_S == 0.5
    assert f"max <= {MAX_PAGE}" in TEXT
    for kind, code in FENCES:  # every language writes the same constants
        if "36C9" in code:
            for constant in ("4901", "36C9", "FF9E", "001C", "5A5A", "500"):
                assert constant in code, (kind, constant)
    assert sum("36C9" in code for _, code in FENCES) == 3


def test_the_opc_ua_tables_are_the_address_space():
    table = TEXT.split("## 2. OPC UA")[1].split("## 3.")[0]
    found = re.findall(r"^\| ([A-Z]\w+) \| (\w+) \| ", table, re.MULTILINE)
    fields = {name: kind for name, kind in found if name in EVENT_FIELDS}
    assert fields == EVENT_FIELDS and NAMESPACE in table
    assert Evaluation.OK == 1 and "**1 OK**" in table


def test_the_answers_of_isp_exist():
    table = TEXT.split("| command | fields | answers |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    assert named <= {str(kind) for kind in Kind} and len(named) > 8


def test_the_roles_and_the_orders_of_an_admin_are_the_codes():
    table = TEXT.split("| role | may |")[1].split("\n\n")[0]
    found = {r: set(c.split(", ")) for r, c in re.findall(r"^\| (\w+) \| (.*) \|", table, re.M)}
    assert found == {str(role): set(ALLOWED[role]) for role in Role}
    for words in re.findall(r"`station (ctl [a-z ]+[a-z])", TEXT):
        done = CliRunner().invoke(app, [*words.split()[: 3 if "recipe" in words else 2], "--help"])
        assert done.exit_code == 0, words
    section = TEXT.split("### 3.1 ")[1].split("\n## ")[0]
    assert {"RECIPE", "MODE", "RESET"} <= set(re.findall(r"^\| ([A-Z]+) \|", section, re.M))
    for field, model in (("action", RecipeCommand), ("mode", ModeCommand)):
        for value in get_args(model.model_fields[field].annotation):
            assert f"`{value}`" in section, value


words16 = st.integers(0, 0xFFFF)
near = st.builds(
    lambda word, part, bits, beat: list(
        encode(Image(Bits(bits), part, 1, Outcome(word=word)), beat, 1)
    ),
    st.sampled_from([Word.OK, Word.OK, Word.NG, Word.NONE]),
    st.sampled_from([0, 7, 8]),
    st.sampled_from([28, 28, 29, 30, 92, 12, 20, 24]),
    words16,
)


@given(
    near | st.lists(words16, min_size=20, max_size=22),
    st.lists(st.tuples(st.integers(0, 20), words16), max_size=1),
    st.sampled_from([0, 7, 8]),
    st.sampled_from([0.0, 499.0, 500.0, 501.0]),
)
@settings(max_examples=600, deadline=None)
def test_the_documents_rule_and_the_codes_rule_agree(words, changes, part, age):
    for address, value in changes:
        if address < len(words):
            words[address] = value
    assert example_rule(words, part, age) == accept(words, part, age)


example_rule = example("acceptance rule")["passes"]


@pytest.fixture
def station(tmp_path):
    made = ScriptedStation(tmp_path / "ledger.db")
    yield made
    made.close()


def test_the_python_plc_of_the_document_runs_a_line(station):
    pytest.importorskip("pymodbus")
    code = example("modbus plc")
    code["passes"] = example_rule
    with gateway(station) as made:
        plc = code["Plc"]("127.0.0.1", made.port)
        assert [plc.inspect(n) for n in range(1, 31)] == [
            truth(str(n)) == "OK" for n in range(1, 31)
        ]
        plc.client.close()


def bare_run(station, count):
    client = example("isp client")["Station"](station.ctl)
    wrong = []
    for n in range(count):
        passed, verdict, _ = client.inspect(f"part-{n}")
        if verdict != truth(f"part-{n}") or passed != (verdict == "OK"):
            wrong.append((n, verdict))
    held = {r["part_id"]: r["verdict"] for r in client.results()}
    client.socket.close(0)
    assert not wrong
    assert held == {f"part-{n}": truth(f"part-{n}") for n in range(count)}


def test_the_bare_isp_client_of_the_document_sees_all_verdicts_and_none_wrong(station):
    bare_run(station, 100)


@pytest.mark.slow
def test_the_bare_isp_client_sees_1000_verdicts_and_none_wrong(station, figure):
    bare_run(station, 1000)
    figure("P1", "bare pyzmq and json (the document's client), 1,000 parts: all, none wrong")


def test_the_bare_isp_client_is_told_when_the_station_is_not_ready(station):
    client = example("isp client")["Station"](station.ctl)
    station.ready = False
    assert client.inspect("p")[:2] == (False, "not_ready")
    client.socket.close(0)


def test_the_bare_isp_client_goes_on_after_a_new_station(station):
    """The part that meets the unknown session is rejected, the next one is inspected."""
    client = example("isp client")["Station"](station.ctl)
    good = [f"p{n}" for n in range(30) if truth(f"p{n}") == "OK"]
    assert client.inspect(good[0])[0]
    client.session = "0" * 16  # as after a restart
    assert client.inspect(good[1])[:2] == (False, "hello_first")
    assert client.inspect(good[2])[:2] == (True, "OK")
    client.session = "0" * 16
    assert [r["part_id"] for r in client.results()] == [good[0], good[2]]
    client.socket.close(0)


def test_the_bare_isp_client_without_a_station_says_so():
    client = example("isp client")["Station"](f"tcp://127.0.0.1:{free_port()}")
    client.ask = lambda *_, **__: (None, [])  # no waiting
    assert client.inspect("p") == (False, "no answer", "")
    with pytest.raises(TimeoutError):
        next(client.results())
    client.socket.close(0)


@pytest.mark.slow  # asyncua takes seconds to start; test_opcua.py has the same by default
def test_the_opc_ua_client_of_the_document_inspects_a_part(station):
    pytest.importorskip("asyncua")
    from station.gateways.link_io import StationAddress
    from station.gateways.opcua import OpcuaGateway, OpcuaSettings

    inspect = example("opcua client")["inspect"]
    endpoint = f"opc.tcp://127.0.0.1:{free_port()}/inspection"
    address = StationAddress(station.ctl, station.pub, "l1", "s1")

    async def main():
        made = OpcuaGateway(address, OpcuaSettings(endpoint, 1000))
        await made.start()
        try:
            async with asyncio.timeout(60):
                while not made.ready:
                    await asyncio.sleep(0.02)
            return [await inspect(endpoint, f"part-{n}", n) for n in range(1, 6)]
        finally:
            await made.close()

    assert asyncio.run(main()) == [truth(f"part-{n}") == "OK" for n in range(1, 6)]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_node_red_function_of_the_document_agrees_with_the_rule():
    (code,) = [code for kind, code in FENCES if kind == "javascript" and "0x36C9" in code]
    good = list(encode(Image(Bits(28), 7, 1, Outcome(word=Word.OK)), 5, 1))
    bad = list(encode(Image(Bits(28), 7, 1, Outcome(word=Word.NG)), 5, 1))
    script = (
        "const store = {}; const context = {get: k => store[k], set: (k, v) => store[k] = v};"
        "const flow = {get: () => 7, set: () => null};"
        f"const f = new Function('msg', 'context', 'flow', {code!r});"
        f"const out = [{good}, {bad}, {[0] * 21}, {[65535] * 21}]"
        ".map(w => f({payload: w}, context, flow));"
        "console.log(out.map(o => o === null ? 'wait' : o.payload.pass).join());"
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "true,false,wait,wait"


def test_a_station_that_never_answers_lets_nothing_pass(station):
    pytest.importorskip("pymodbus")
    code = example("modbus plc")
    code["passes"] = example_rule
    station.silent = True
    with gateway(station, deadline_ms=200) as made:
        plc = code["Plc"]("127.0.0.1", made.port)
        assert plc.free(time.monotonic() + 30)
        assert not plc.inspect(1)
        plc.client.close()
