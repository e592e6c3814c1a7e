"""`station ledger export`: over FETCH while the station runs, from the file when it is stopped."""

import csv
import json
import sys
from pathlib import Path

import pytest
from buskit import FastStation, draft, opening
from typer.testing import CliRunner

from engines.errors import InUseError, LedgerError, UsageError
from station.ledger import Ledger
from station.ledger_export import columns, flatten, ledger_app, stored_bodies
from station.schema import EventDraft, Region, Stream, hex64, parse


def fill(ledger, count):
    region = Region(x=1, y=2, w=3, h=4, peak=0.9, area=5)
    for number in range(count):
        ledger.open_part(opening(hex64(number), part_id=f'part "{number}", Ä'))
        wrong = draft(hex64(number), 0.9, regions=(region,), region_count=1)
        last = ledger.commit_result(wrong if number % 2 else draft(hex64(number)))
    last.result(10)
    ledger.append("event", EventDraft(kind="x", text="a\nb", data={"ms": 3})).result(10)


def invoke(*arguments):
    done = CliRunner().invoke(ledger_app, [str(a) for a in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_same_table_from_the_running_and_the_stopped_station(tmp_path):
    station = FastStation(tmp_path)
    fill(station.ledger, 300)
    path = tmp_path / "st1.db"
    running, stopped = tmp_path / "a.csv", tmp_path / "b.csv"
    invoke("export", running, "--ledger", path, "--ctl", station.bus.ctl_address)
    station.stop()
    done = invoke("export", stopped, "--ledger", path)
    assert "300 rows of result" in done.output
    assert running.read_bytes() == stopped.read_bytes()
    rows = list(csv.DictReader(stopped.open(encoding="utf-8", newline="")))
    assert [int(row["seq"]) for row in rows] == list(range(1, 301))
    assert rows[1]["verdict"] == "NG" and rows[1]["part_id"] == 'part "1", Ä'
    assert json.loads(rows[1]["regions"])[0]["peak"] == 0.9 and "timings_us.commit" in rows[1]


def test_events_are_exported_too(tmp_path):
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    fill(ledger, 1)
    ledger.close()
    invoke("export", tmp_path / "e.csv", "--stream", "event", "--ledger", tmp_path / "l.db")
    rows = list(csv.DictReader((tmp_path / "e.csv").open(newline="")))
    assert rows[0]["text"] == "a\nb" and json.loads(rows[0]["data"]) == {"ms": 3}


def test_exporting_a_stopped_ledger_changes_nothing_in_it(tmp_path):
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    ledger.open_part(opening()).result(5)
    ledger.close()
    invoke("export", tmp_path / "r.csv", "--ledger", tmp_path / "l.db")
    with stored_bodies(tmp_path / "l.db", Stream.RESULT, "", None) as bodies:
        assert list(bodies) == [], "PENDING is resolved by a station, not by a reader"


def test_every_field_has_its_column():
    for stream in (Stream.RESULT, Stream.DESC, Stream.EVENT):
        assert {"epoch", "seq", "trigger_id"} <= set(columns(stream))
    golden = Path(__file__).parent / "golden"
    for stream in ("result", "desc", "event"):
        row = flatten((golden / f"{stream}.json").read_bytes())
        assert set(row) == set(columns(Stream(stream)))


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(LedgerError, match="no ledger"):
        invoke("export", tmp_path / "x.csv", "--ledger", tmp_path / "none.db")
    with pytest.raises(LedgerError, match="no ledger"):
        invoke("forget", "plc", "--ledger", tmp_path / "none.db")
    with pytest.raises(UsageError, match="not stored"):
        invoke("export", tmp_path / "x.csv", "--stream", "status")
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    with pytest.raises(LedgerError, match="--ctl"):
        invoke(
            "export",
            tmp_path / "x.csv",
            "--ledger",
            tmp_path / "l.db",
            "--ctl",
            "tcp://127.0.0.1:9",
        )
    with pytest.raises(InUseError):
        invoke("forget", "plc", "--ledger", tmp_path / "l.db")
    ledger.close()
    (tmp_path / "l.db").write_bytes(b"noise" * 1000)
    with pytest.raises(LedgerError, match="moves it aside"):
        invoke("export", tmp_path / "x.csv", "--ledger", tmp_path / "l.db")


def test_without_options_it_is_the_ledger_of_the_settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(tmp_path / "own.db", line="l", station="s")
    fill(ledger, 2)
    ledger.close()
    (tmp_path / "other.toml").write_text("[ledger]\npath = 'own.db'\n")
    assert "2 rows" in invoke("export", "a.csv", "--config", "other.toml").output
    assert "0 cursors" in invoke("forget", "plc", "--config", "other.toml").output
    monkeypatch.setenv("STATION_LEDGER__PATH", "own.db")
    assert "2 rows" in invoke("export", "b.CSV").output


def test_a_running_station_is_asked_where_the_settings_say(tmp_path, monkeypatch):
    station = FastStation(tmp_path)
    fill(station.ledger, 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATION_BUS__CTL_PORT", station.bus.ctl_address.rpartition(":")[2])
    monkeypatch.setenv("STATION_LEDGER__PATH", "st1.db")
    try:
        assert "2 rows" in invoke("export", "a.csv").output
    finally:
        station.stop()


@pytest.mark.parametrize("name", ["x.xlsx", "x", "x.csv.gz", "photo.jpg"])
def test_a_table_of_an_unknown_kind_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=r"ends in \.csv or \.parquet"):
        invoke("export", tmp_path / name, "--ledger", tmp_path / "l.db")
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff photo", b"SQLite format 3\0" + bytes(200)])
def test_a_file_that_is_no_ledger_stays_as_it_is_with_nothing_beside_it(tmp_path, content):
    (tmp_path / "img.jpg").write_bytes(content)
    for words in (("export", tmp_path / "x.csv"), ("forget", "plc")):
        with pytest.raises(LedgerError, match=r"img\.jpg is not a ledger"):
            invoke(*words, "--ledger", tmp_path / "img.jpg")
    assert [p.name for p in tmp_path.iterdir()] == ["img.jpg"]
    assert (tmp_path / "img.jpg").read_bytes() == content


def test_an_export_that_fails_leaves_the_table_of_before(tmp_path):
    (tmp_path / "x.csv").write_text("last week")
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    words = ("--ledger", tmp_path / "l.db", "--ctl", "tcp://127.0.0.1:9")
    with pytest.raises(LedgerError, match="--ctl"):
        invoke("export", tmp_path / "x.csv", *words)
    ledger.close()
    assert (tmp_path / "x.csv").read_text() == "last week"
    assert not list(tmp_path.glob(".*"))


def test_a_place_that_cannot_be_written_is_told_by_the_name_that_was_given(tmp_path):
    Ledger(tmp_path / "l.db", line="l", station="s").close()
    for name in ("missing/x.csv", "folder.csv", "l.db/x.csv"):
        (tmp_path / "folder.csv").mkdir(exist_ok=True)
        with pytest.raises(OSError, match="directory") as caught:
            invoke("export", tmp_path / name, "--ledger", tmp_path / "l.db")
        assert caught.value.filename == str(tmp_path / name)
        assert not list(tmp_path.glob(".*"))


def test_a_consumer_that_left_is_forgotten(tmp_path):
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    fill(ledger, 3)
    ledger.ack("plc", "result", 2).result(5)
    ledger.close()
    assert "1 cursors" in invoke("forget", "plc", "--ledger", tmp_path / "l.db").output
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    assert ledger.cursors == {} and parse(ledger.latest("result").result(5)).seq == 3
    ledger.close()


def test_parquet_without_pyarrow_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    Ledger(tmp_path / "l.db", line="l", station="s").close()
    with pytest.raises(UsageError, match="pyarrow"):
        invoke("export", tmp_path / "x.parquet", "--ledger", tmp_path / "l.db")


def test_parquet_holds_the_same_rows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    ledger = Ledger(tmp_path / "l.db", line="l", station="s")
    fill(ledger, 5)
    ledger.close()
    invoke("export", tmp_path / "x.parquet", "--ledger", tmp_path / "l.db")
    table = parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [row["seq"] for row in table] == [1, 2, 3, 4, 5] and table[1]["verdict"] == "NG"
