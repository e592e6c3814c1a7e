"""The OPC UA gateway seen by a bare asyncua client."""

import asyncio
import contextlib
import itertools
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

pytest.importorskip("asyncua")
from asyncua import Client, ua
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256

from engines.errors import ConfigError, UsageError
from station.gateways.link_io import StationAddress
from station.gateways.opcua import OpcuaGateway, OpcuaSettings
from station.gateways.opcua_security import Users, user_line
from tests.station.gatekit import ScriptedStation, free_port, truth

NAMESPACE = "urn:inspection-station:result-transfer"
EVALUATIONS = {"OK": 1, "NG": 2, "UNDECIDED": 3, "ERROR": 3}


@pytest.fixture(scope="module")
def hall(tmp_path_factory):
    """One loop, station and gateway for most tests: asyncua takes seconds to start."""
    station = ScriptedStation(tmp_path_factory.mktemp("hall") / "ledger.db")

    async def opened():
        stack = AsyncExitStack()
        return stack, await stack.enter_async_context(gateway(station))

    with asyncio.Runner() as runner:
        stack, made = runner.run(opened())
        yield runner, station, made
        runner.run(stack.aclose())
    station.close()


@pytest.fixture
def floor(hall):
    """`run(body)` runs `body(client)` against the shared gateway; the station is whole again."""
    runner, station, made = hall

    async def inside(body):
        async with scada(made) as client:
            return await body(client)

    yield lambda body: runner.run(inside(body)), station
    station.ready, station.silent, station.frozen = True, False, False


_ids = itertools.count(1)


def fresh(verdict="OK"):
    """A trigger id nobody used whose part gets this verdict."""
    return next(n for n in _ids if truth(f"part-{n}") == verdict)


@asynccontextmanager
async def gateway(station, name="s1", **options):
    endpoint = f"opc.tcp://127.0.0.1:{free_port()}/inspection"
    address = StationAddress(station.ctl, station.pub, "l1", name)
    made = OpcuaGateway(
        address, OpcuaSettings(endpoint, options.pop("deadline_ms", 1000), **options)
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()


class Scada:
    """An integrator's client: nothing of ours but names from the document."""

    def __init__(self, client):
        self.client = client

    async def open(self):
        self.ns = await self.client.get_namespace_index(NAMESPACE)
        self.root = await self.client.nodes.objects.get_child(f"{self.ns}:InspectionStation")
        await self.wait("Ready", True)
        return self

    async def value(self, name):
        return await (await self.root.get_child(f"{self.ns}:{name}")).read_value()

    async def wait(self, name, wanted, seconds=30):
        async with asyncio.timeout(seconds):
            while await self.value(name) != wanted:
                await asyncio.sleep(0.02)

    async def inspect(self, trigger, part=None, deadline=0):
        return await self.root.call_method(
            f"{self.ns}:Inspect",
            ua.Variant(part or f"part-{trigger}", ua.VariantType.String),
            ua.Variant(trigger, ua.VariantType.UInt32),
            ua.Variant(deadline, ua.VariantType.UInt32),
        )

    async def result(self, result_id):
        management = await self.root.get_child(f"{self.ns}:ResultManagement")
        return await management.call_method(f"{self.ns}:GetResultById", result_id)


@asynccontextmanager
async def scada(made, **_):
    async with Client(made.settings.endpoint) as client:
        yield await Scada(client).open()


async def wrong_of(client, triggers):
    wrong = []
    for trigger in triggers:
        answer = await client.inspect(trigger)
        if answer[1] != EVALUATIONS[truth(f"part-{trigger}")]:
            wrong.append((trigger, answer))
    return wrong


def test_inspect_answers_each_part_with_its_own_verdict(floor):
    run, _ = floor
    triggers = list(itertools.islice(_ids, 50))
    assert not run(lambda client: wrong_of(client, triggers))


class Events:
    def __init__(self):
        self.seen = []

    def event_notification(self, event):
        self.seen.append((event.PartId, event.ResultEvaluation, event.ResultId))


async def follow(client, triggers):
    """Parts inspected by call, while all results come as events too."""
    events = Events()
    subscription = await client.client.create_subscription(50, events)
    kind = await client.client.nodes.base_event_type.get_child(f"{client.ns}:ResultReadyEventType")
    await subscription.subscribe_events(client.root, kind)
    wrong = await wrong_of(client, triggers)
    # The answer to a call does not wait for the event, so on a busy machine events of parts from
    # before the subscription may still come: only this run's own are counted.
    own = {f"part-{n}" for n in triggers}
    with contextlib.suppress(TimeoutError):  # what came is compared with what should have come
        async with asyncio.timeout(60):
            while sum(part in own for part, *_ in events.seen) < len(own):
                await asyncio.sleep(0.05)
    return wrong, [seen for seen in events.seen if seen[0] in own]


def check_run(floor, count):
    run, station = floor
    triggers = list(itertools.islice(_ids, count))
    wrong, seen = run(lambda client: follow(client, triggers))
    # Safe: refused for want of an answer, because the disk took longer than a part may.
    late = [n for n, answer in wrong if answer[2] in (101, 107) and station.disk_stalled]
    assert len(wrong) == len(late), wrong
    busy = {f"part-{n}" for n, answer in wrong if answer[2] == 101}  # was not inspected at all
    triggers = [n for n in triggers if f"part-{n}" not in busy]
    assert [part for part, _, _ in seen] == [f"part-{n}" for n in triggers]
    assert all(value == EVALUATIONS[truth(part)] for part, value, _ in seen)


def test_every_result_comes_as_an_event_in_order(floor):
    check_run(floor, 40)


@pytest.mark.slow
def test_1000_parts_by_call_and_by_event_and_none_wrong(floor, figure):
    _, station = floor
    before = station.ledger.last_seq("result")
    check_run(floor, 1000)
    figure("P1", "bare asyncua, 1,000 parts by call and by event: all, in order, none wrong")
    if not station.disk_stalled:
        assert station.ledger.last_seq("result") == before + 1000


def test_results_can_be_asked_for_by_id_and_by_nothing_else(floor):
    trigger = fresh()

    async def body(client):
        answer = await client.inspect(trigger)
        found = await client.result(answer[0])
        while found[0] == -1:  # the event path may be a moment behind the answer
            found = await client.result(answer[0])
        assert found[0] == 0 and found[1] == answer[0] and found[2] == f"part-{trigger}"
        assert found[14] == 1 and '"score":0.25' in found[17]
        assert (await client.result("l1/s1/0000000000000000"))[0] == -1
        management = await client.root.get_child(f"{client.ns}:ResultManagement")
        children = await management.get_children()
        names = [(await child.read_browse_name()).Name for child in children]
        assert names == ["GetResultById"]  # no GetLatestResult: pairing by "latest" is wrong

    floor[0](body)


def test_refusals_are_undefined_with_a_reason(floor):
    run, station = floor
    trigger = fresh()

    async def body(client):
        assert (await client.inspect(0))[1:3] == [0, 105]
        assert (await client.inspect(trigger))[1] == 1
        assert (await client.inspect(trigger))[1:3] == [0, 103]
        station.ready = False
        await client.wait("Ready", False)
        assert (await client.inspect(fresh()))[1:3] == [0, 102]
        station.frozen = True
        await client.wait("Link", False)
        assert (await client.inspect(fresh()))[1:3] == [0, 106]
        assert await client.value("Fault")

    run(body)


def test_a_verdict_that_never_comes_is_undefined_within_its_deadline(floor):
    run, station = floor

    async def body(client):
        station.silent = True
        async with asyncio.timeout(30):
            assert (await client.inspect(fresh(), deadline=200))[1:3] == [0, 107]

    run(body)


def test_a_part_in_flight_is_undefined_when_the_station_is_lost(floor):
    run, station = floor

    async def body(client):
        station.silent = True
        call = asyncio.create_task(client.inspect(fresh(), deadline=5000))
        await asyncio.sleep(0.1)
        station.frozen = True
        async with asyncio.timeout(30):
            assert (await call)[1:3] == [0, 106]

    run(body)


def test_two_stations_do_not_mix(hall, tmp_path):
    runner, first, left = hall

    async def main():
        second = ScriptedStation(tmp_path / "b.db", name="s10")
        before = first.ledger.last_seq("result")
        async with gateway(second, "s10") as right, scada(left) as one, scada(right) as ten:
            for n in itertools.islice(_ids, 10):
                for client, name in ((one, "s1"), (ten, "s10")):
                    answer = await client.inspect(n)
                    assert answer[0].startswith(f"l1/{name}/")
                    assert answer[1] == EVALUATIONS[truth(f"part-{n}")], answer
        assert first.ledger.last_seq("result") == before + 10
        assert second.ledger.last_seq("result") == 10
        second.close()

    runner.run(main())


def test_users_and_encryption_keep_strangers_out(hall, tmp_path):
    runner, station, _ = hall
    trigger, before = fresh(), station.ledger.last_seq("result")
    users = tmp_path / "users"
    users.write_text(user_line("line", "correct horse") + "\n")

    async def secure(client, tmp):
        client.application_uri = "urn:test:client"
        from asyncua.crypto.cert_gen import setup_self_signed_certificate
        from cryptography.x509.oid import ExtendedKeyUsageOID

        await setup_self_signed_certificate(
            *(tmp / "c.pem", tmp / "c.der", "urn:test:client", "localhost"),
            [ExtendedKeyUsageOID.CLIENT_AUTH],
            {"commonName": "client"},
        )
        await client.set_security(
            SecurityPolicyBasic256Sha256, str(tmp / "c.der"), str(tmp / "c.pem")
        )

    async def attempt(endpoint, user, password, encrypted=True):
        client = Client(endpoint)
        if user:
            client.set_user(user)
            client.set_password(password)
        if encrypted:
            await secure(client, tmp_path)
        async with client:
            opened = await Scada(client).open()
            return await opened.inspect(trigger)

    async def main():
        async with gateway(station, users=users, pki=tmp_path / "pki") as made:
            endpoint = made.settings.endpoint
            assert (await attempt(endpoint, "line", "correct horse"))[1] == 1
            for user, password, encrypted in (
                ("line", "wrong horse", True),
                ("other", "correct horse", True),
                (None, None, True),
                ("line", "correct horse", False),
            ):
                with pytest.raises(Exception):  # noqa: B017  asyncua raises many kinds
                    async with asyncio.timeout(60):
                        await attempt(endpoint, user, password, encrypted)
        assert station.ledger.last_seq("result") == before + 1

    runner.run(main())
    assert (tmp_path / "pki" / "opcua.pem").stat().st_mode & 0o077 == 0


def test_an_open_endpoint_off_loopback_is_refused():
    address = StationAddress("tcp://127.0.0.1:1", "tcp://127.0.0.1:2", "l1", "s1")
    with pytest.raises(ConfigError, match="reachable from outside"):
        OpcuaGateway(address, OpcuaSettings("opc.tcp://0.0.0.0:4840/x", 1000))


def test_a_users_file_is_checked(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Users(tmp_path / "none")
    (tmp_path / "bad").write_text("name-without-hash\n")
    with pytest.raises(ConfigError, match="line 1"):
        Users(tmp_path / "bad")
    with pytest.raises(UsageError):
        user_line("a:b", "long enough")
    with pytest.raises(UsageError):
        user_line("a", "short")


def test_the_user_command_adds_and_changes_a_password(tmp_path):
    code = "import sys; from station.gateways.opcua_cli import app; app(sys.argv[1:])"
    for password in ("first password", "second password"):
        subprocess.run(
            [
                *(sys.executable, "-c", code, "user", "anna"),
                *("--file", str(tmp_path / "u"), "--password", password),
            ],
            check=True,
            capture_output=True,
        )
    users = Users(tmp_path / "u")
    assert users.known("anna", "second password") and not users.known("anna", "first password")
    assert (tmp_path / "u").stat().st_mode & 0o077 == 0
