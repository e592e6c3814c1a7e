"""Recorder, archive and numbers inside the real daemon: verdicts never wait for them."""

import json
import urllib.request
from pathlib import Path

import pytest
from faultkit.engines import FakeEngine
from faultkit.station import parts_folder, results, station, until

from station.archive_index import entries
from station.record_reader import McapSource
from station.sources.base import EndOfSource

PARTS = 30


def replayed(path: Path) -> list[dict]:
    source = McapSource(path)
    source.open()
    found = []
    while True:
        try:
            frame = source.read(1.0)
        except EndOfSource:
            return found
        found.append(source.verdict(frame.index))


def ended(client, count=PARTS):
    until(lambda: len(results(client)) >= count, 30)
    return results(client)


def test_every_part_of_a_run_is_in_the_recording_byte_for_byte(tmp_path):
    parts = parts_folder(tmp_path / "parts", PARTS)
    record = {"enabled": True, "every_ok": 1, "folder": tmp_path / "rec", "min_free_bytes": 0}
    with station(tmp_path, str(parts), record=record) as (_, client):
        judged = ended(client)
    assert replayed(tmp_path / "rec") == [json.loads(r.model_dump_json()) for r in judged]


def test_a_full_disk_stops_recordings_and_never_verdicts(tmp_path):
    parts = parts_folder(tmp_path / "parts", PARTS)
    record = {"enabled": True, "every_ok": 1, "folder": tmp_path / "rec"}
    record["min_free_bytes"] = 1 << 60
    archive = {"enabled": True, "folder": tmp_path / "archive", "min_free_bytes": 1 << 60}
    with station(tmp_path, str(parts), record=record, archive=archive) as (_, client):
        judged = ended(client)
        kinds = {json.loads(body)["kind"] for body in client.fetch_all("event")}
    assert len(judged) == PARTS
    assert {"recording_full", "archive_full"} <= kinds
    assert not list((tmp_path / "rec").glob("*.mcap*"))


def test_rejects_are_archived_and_their_pictures_can_be_had(tmp_path):
    parts = parts_folder(tmp_path / "parts", PARTS)
    archive = {"enabled": True, "folder": tmp_path / "archive", "min_free_bytes": 0}
    with station(tmp_path, str(parts), archive=archive, recipe_kw={"threshold": 0.01}) as (
        _,
        client,
    ):
        judged = ended(client)
        assert {r.verdict for r in judged} == {"NG"}
        until(lambda: len(entries(tmp_path / "archive", "ng")) == PARTS)
        last = judged[-1].image_ref
        for suffix in ("", ":thumb", ":map"):
            header, data = client.get(last + suffix)
            assert header["media_type"] in {"image/png", "image/jpeg"}
            assert len(data) > 100


def test_the_numbers_are_those_of_the_ledger(tmp_path):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    parts = parts_folder(tmp_path / "parts", PARTS)
    with station(tmp_path, str(parts), metrics={"port": port}) as (_, client):
        ended(client)
        address = f"http://127.0.0.1:{port}/metrics"
        wanted = f'station_parts_total{{reason="score",verdict="OK"}} {PARTS}.0'

        def page():
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.read().decode()

        until(lambda: wanted in page())
        assert "station_heartbeat" in page()


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_parts_the_engine_failed_on_are_recorded_with_their_pictures(tmp_path, fault):
    parts = parts_folder(tmp_path / "parts", 5)
    record = {"enabled": True, "every_ok": 0, "folder": tmp_path / "rec", "min_free_bytes": 0}
    engine = FakeEngine(fault=fault)
    with station(tmp_path, str(parts), engine, record=record) as (_, client):
        ended(client, 5)
    (path,) = (tmp_path / "rec").glob("*.mcap")
    source = McapSource(path)
    source.open()
    frame = source.read(1.0)
    assert frame.raw is not None
    assert frame.tags["verdict"] == "ERROR"
