"""P6: a consumer that was away gets all it missed, once and in order."""

import threading
import time

import zmq
from busfixtures import fast_station, station_client  # noqa: F401
from buskit import FastStation, Raw, draft, opening

from station.client import Client
from station.schema import hex64, new_id

# -- P6: a consumer that was away gets all it missed ---------------------------------------------


def produce(station, count, first=0):
    for number in range(first, first + count):
        station.ledger.open_part(opening(hex64(number)))
        last = station.ledger.commit_result(draft(hex64(number)))
    last.result(60)


def collect(client, count, **more):
    seen = []
    for body in client.subscribe(("result",), timeout_s=30.0, **more):
        assert body is not None, f"silence after {len(seen)} of {count}"
        seen.append(body.seq)
        if len(seen) == count:
            return seen
    return seen


def test_a_late_joiner_gets_everything_once_and_in_order(station, client):
    produce(station, 700)
    writer = threading.Thread(target=produce, args=(station, 700, 700))
    writer.start()
    assert collect(client, 1400, since={"result": 0}) == list(range(1, 1401))
    writer.join()


def test_a_watcher_from_now_on_sees_only_what_comes(station, client):
    produce(station, 5)
    bodies = client.subscribe(("result", "status"), timeout_s=30.0)
    assert next(bodies).stream == "status"
    produce(station, 3, 5)
    results = (body.seq for body in bodies if body is not None and body.stream == "result")
    assert [next(results) for _ in range(3)] == [6, 7, 8]


def test_a_lost_last_message_is_revealed_by_the_status(station, client):
    """Not one result reaches the watcher by PUB; the status and FETCH bring them all."""
    publish = station.bus._publish
    station.bus._publish = lambda stream, data: publish(stream, data) if stream == "status" else 0
    threading.Timer(0.5, produce, (station, 10)).start()
    assert collect(client, 10, since={"result": 0}) == list(range(1, 11))


def test_gaps_of_any_kind_are_filled(station, client):
    publish, count = station.bus._publish, [0]

    def lossy(stream, data):
        count[0] += 1
        if stream == "status" or count[0] % 3 == 0 or count[0] % 50 > 40:
            publish(stream, data)

    station.bus._publish = lossy
    threading.Timer(0.3, produce, (station, 1000)).start()
    assert collect(client, 1000, since={"result": 0}) == list(range(1, 1001))


def test_a_watcher_that_sleeps_until_pub_overflows_gets_all(station, client):
    """The reader stands still while 5,000 bodies pass: more than any queue holds."""
    bodies = client.subscribe(("result",), since={"result": 0}, timeout_s=30.0)
    produce(station, 1)
    assert next(bodies).seq == 1
    produce(station, 5000, 1)
    assert [next(bodies).seq for _ in range(5000)] == list(range(2, 5002))


def test_a_flood_while_the_bus_stands_still_ends_nothing(station):
    """5,000 requests from one peer while the owner thread hangs for longer than the heartbeats
    allow: its queue runs full, connections are given up, and the station lives on."""
    plain = station.status

    def hanging():
        station.status = plain
        time.sleep(4.0)
        return plain()

    with Raw(station.bus.ctl_address) as peer, Client(station.bus.ctl_address) as other:
        peer.socket.setsockopt(zmq.SNDHWM, 10_000)
        station.status = hanging
        time.sleep(0.4)
        for _ in range(5000):
            peer.send(cmd="PING")
        time.sleep(4.5)
        other.hello()
        assert other.trigger(new_id()).accept
    assert station.bus.alive


def test_a_new_ledger_begins_a_new_epoch_for_the_watcher(tmp_path):
    station = FastStation(tmp_path)
    ctl, pub = station.bus.ctl_address, station.bus.pub_address
    seen = []
    with Client(ctl, pub, timeout_s=0.5) as client:
        produce(station, 3)
        for body in client.subscribe(("result",), since={"result": 0}, timeout_s=0.3):
            if body is not None:
                seen.append((body.epoch, body.seq))
            if len(seen) == 3 and body is not None:
                station.stop()
                for piece in tmp_path.glob("st1.db*"):
                    piece.unlink()
                station = FastStation(tmp_path, ctl=ctl, pub=pub)
                produce(station, 2)
            if len(seen) == 5:
                break
    assert [seq for _, seq in seen] == [1, 2, 3, 1, 2]
    assert len({epoch for epoch, _ in seen}) == 2
    station.stop()


def test_silence_is_told_and_the_watch_goes_on(tmp_path):
    station = FastStation(tmp_path)
    ctl, pub = station.bus.ctl_address, station.bus.pub_address
    with Client(ctl, pub, timeout_s=0.3) as client:
        bodies = client.subscribe(("result", "status"), timeout_s=0.6)
        while next(bodies) is None:
            pass
        station.stop()
        begin = time.monotonic()
        while next(bodies) is not None:
            assert time.monotonic() < begin + 20
        station = FastStation(tmp_path, ctl=ctl, pub=pub)
        produce(station, 2)
        seqs = []
        while len(seqs) < 2:
            body = next(bodies)
            seqs += [body.seq] if body is not None and body.stream == "result" else []
            assert time.monotonic() < begin + 60
        assert seqs == [1, 2]
    station.stop()
