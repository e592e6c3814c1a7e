"""P6 over OPC UA: a client that was away finds every event it missed, in order.

The client is a program of bare asyncua that is stopped (SIGSTOP) while the line goes on: the server
then holds hundreds of events for it and sends them in one message.
"""

import asyncio
import signal
import subprocess
import sys
import threading

import pytest

pytest.importorskip("asyncua")
from buskit import opening

from station.gateways.link_io import StationAddress
from station.gateways.opcua import OpcuaGateway, OpcuaSettings
from station.schema import hex64
from tests.station.gatekit import ScriptedStation, draft, free_port, wait_for

AWAY = 4000  # parts: more than 1 MiB of events; the server keeps 5,000 for a client
CLIENT = """
import asyncio, json, sys
from asyncua import Client

class Events:
    def event_notification(self, event):
        print(json.loads(event.ResultContent)["seq"], flush=True)

async def main():
    async with Client(sys.argv[1], timeout=120) as client:  # it is asleep for a while
        ns = await client.get_namespace_index("urn:inspection-station:result-transfer")
        root = await client.nodes.objects.get_child(f"{ns}:InspectionStation")
        ready = await root.get_child(f"{ns}:Ready")
        while not await ready.read_value():
            await asyncio.sleep(0.05)
        kind = await client.nodes.base_event_type.get_child(f"{ns}:ResultReadyEventType")
        subscription = await client.create_subscription(50, Events())
        await subscription.subscribe_events(root, kind)
        print("subscribed", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def hall(tmp_path):
    """A station and its gateway, the gateway in a loop of its own thread."""
    station = ScriptedStation(tmp_path / "ledger.db")
    endpoint = f"opc.tcp://127.0.0.1:{free_port()}/inspection"
    loop, up, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def main():
        address = StationAddress(station.ctl, station.pub, "l1", "s1")
        made = OpcuaGateway(address, OpcuaSettings(endpoint, 1000))
        await made.start()
        up.set()
        await made.run(stop)
        await made.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert up.wait(60)
    yield station, endpoint
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    station.close()


def produce(station, numbers):
    for number in numbers:
        station.ledger.open_part(opening(hex64(number), part_id=f"part-{number}"))
        last = station.ledger.commit_result(draft(hex64(number), f"part-{number}"))
    last.result(60)


def test_a_client_that_was_away_gets_every_event_in_order(hall, tmp_path, figure):
    station, endpoint = hall
    heard = tmp_path / "heard"
    with heard.open("wb") as out:
        client = subprocess.Popen([sys.executable, "-c", CLIENT, endpoint], stdout=out)

    def lines():
        return heard.read_text().split("\n")[:-1]

    try:
        wait_for(lambda: "subscribed" in lines())
        produce(station, range(1, 11))
        wait_for(lambda: len(lines()) == 11)
        client.send_signal(signal.SIGSTOP)
        produce(station, range(11, AWAY + 11))
        client.send_signal(signal.SIGCONT)
        wait_for(lambda: len(lines()) >= AWAY + 11 or client.poll() is not None)
    finally:
        client.kill()
        client.wait()
    assert lines()[1:] == [str(seq) for seq in range(1, AWAY + 11)]
    figure("P6", f"OPC UA client stopped while {AWAY} parts pass: every event, in order")
