"""Re-inspection: the verdicts of the station, resumable, over processes, in shares."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from faultkit.engines import FakeEngine, fake_recipe
from typer.testing import CliRunner

from calibration.enroll import RecipeArgs, enroll
from engines.bundle import load_bundle
from engines.detector import Detector
from engines.errors import ConfigError, SourceError, StationError, UsageError
from station import reinspect_work
from station.inspection import Product
from station.reinspect import done_before, reinspect
from station.reinspect_items import items, shard
from station.settings import load_settings


def picture(level, seed=0):
    rng = np.random.default_rng(seed)
    small = rng.integers(-25, 25, (20, 26, 3)) + level
    return cv2.resize(small.clip(0, 255).astype(np.uint8), (130, 100))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "parts"
    for number in range(40):
        path = root / f"day{number % 2}" / f"p{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture(60 + 4 * number, number))
    (root / "day0" / "p00.map.png").write_bytes(b"the archive's map is no part")
    return root


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    given = {"recipe": {"name": "test", "root": tmp_path / "recipes"}}
    return load_settings(tmp_path / "empty.toml", given)


@pytest.fixture
def engine(monkeypatch):
    """Brightness decides: above 0.5 is NG."""
    fake = FakeEngine()
    product = Product(fake, fake_recipe(threshold=0.5), "b" * 64)
    monkeypatch.setattr(reinspect_work, "open_product", lambda _settings: product)
    return fake


def rows_of(path):
    head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    return head, rows


def test_every_picture_gets_one_row_in_sorted_order(folder, settings, engine, tmp_path):
    out = tmp_path / "report.jsonl"
    seen = []
    found = reinspect(settings, items([folder]), out, 1, lambda a, b: seen.append((a, b)))
    head, rows = rows_of(out)
    assert (head["recipe"], head["engine_sha"], head["threshold"]) == ("test", "f" * 64, 0.5)
    names = [row["picture"] for row in rows]
    assert names == sorted(names)
    assert len(names) == len(set(names)) == found.parts == found.fresh == 40
    bright = {r["picture"] for r in rows if r["verdict"] == "NG"}
    assert bright == {r["picture"] for r in rows if r["score"] > 0.5}
    assert found.verdicts == {"OK": 40 - len(bright), "NG": len(bright)}
    assert seen[-1] == (40, 40)


@pytest.mark.parametrize("cut", [0, 1, 37, 200, 900, 2500, 10_000])
def test_a_run_that_was_cut_goes_on_and_ends_the_same(folder, settings, engine, tmp_path, cut):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    reinspect(settings, items([folder]), whole, 1)
    part.write_bytes(whole.read_bytes()[:cut])
    engine.calls = 0
    found = reinspect(settings, items([folder]), part, 1)
    assert part.read_bytes() == whole.read_bytes()
    assert engine.calls == found.fresh
    assert found.parts == 40
    assert found.fresh < 40 or cut < 400


def test_another_recipe_or_a_strange_file_is_not_continued(folder, settings, engine, tmp_path):
    out = tmp_path / "report.jsonl"
    reinspect(settings, items([folder]), out, 1)
    before = out.read_bytes()
    engine.engine_sha = "0" * 64
    with pytest.raises(UsageError, match="begun with another engine_sha"):
        reinspect(settings, items([folder]), out, 1)
    assert out.read_bytes() == before
    for content in (b"not json\n", b"[1]\n", b'{"a": 1}\n'):
        out.write_bytes(content)
        with pytest.raises(UsageError, match=r"report\.jsonl is not a report"):
            done_before(out, {})


@pytest.mark.parametrize(
    "content",
    [
        b"notes of mine, without a last newline",
        b"first line\nand a tail without newline",
        b'{"reinspect": 1}\n{"other": 2}\na tail',
        b'{"reinspect": 1, "recipe": "another"}\ntail',
        b"\x89PNG\r\n\x1a\n\x00\x00 binary",
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_foreign_file_is_refused_as_it_was(folder, settings, engine, tmp_path, content):
    out = tmp_path / "mine.txt"
    out.write_bytes(content)
    with pytest.raises(UsageError, match=r"mine\.txt (is not a report|was begun)") as caught:
        reinspect(settings, items([folder]), out, 1)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == content


def test_a_device_a_pipe_or_a_folder_is_no_place_for_a_report(tmp_path):
    """/dev/full is read for ever, a pipe hangs, /dev/null cannot be synchronised."""
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/full"), tmp_path / "pipe", tmp_path):
        with pytest.raises(UsageError, match="is not a file: name another --out"):
            done_before(path, {})


def test_what_cannot_be_judged_is_an_error_row_and_the_run_goes_on(
    folder, settings, engine, tmp_path
):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 cut")
    cv2.imwrite(str(folder / "black.png"), np.zeros((50, 50, 3), np.uint8))
    work = items([folder])
    (folder / "day1" / "p01.png").unlink()
    reinspect(settings, work, tmp_path / "r.jsonl", 1)
    rows = {row["picture"]: row for row in rows_of(tmp_path / "r.jsonl")[1]}
    assert rows["broken.jpg"]["reason"] == rows["day1/p01.png"]["reason"] == "camera"
    assert rows["black.png"]["verdict"] == "UNDECIDED"
    assert len(rows) == 42


@pytest.mark.parametrize(("fault", "reason"), [("raise", "infer"), ("nan", "not_finite")])
def test_an_engine_at_fault_gives_error_and_never_ok(
    folder, settings, engine, tmp_path, fault, reason
):
    engine.fault = fault
    found = reinspect(settings, items([folder])[:3], tmp_path / "r.jsonl", 1)
    assert found.verdicts == {"ERROR": 3}
    assert {r["reason"] for r in rows_of(tmp_path / "r.jsonl")[1]} == {reason}


def test_what_the_archive_said_is_compared(folder, settings, engine, tmp_path):
    said = {"verdict": "OK", "score": 0.1}
    for path in folder.rglob("p3*.png"):
        path.with_suffix(".json").write_text(json.dumps(said))
    found = reinspect(settings, items([folder]), tmp_path / "r.jsonl", 1)
    assert found.changed == {("OK", "NG"): 10}
    row = next(r for r in rows_of(tmp_path / "r.jsonl")[1] if r["picture"].endswith("p30.png"))
    assert row["was"] == said


def test_shares_are_disjoint_complete_and_even(folder):
    work = items([folder])
    shares = [shard(work, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(i.key for s in shares for i in s) == [i.key for i in work]
    assert {len(s) for s in shares} == {13, 14}
    assert shard(work, None) == work
    for wrong in ("0/3", "4/3", "a/b", "3", "1/0"):
        with pytest.raises(UsageError, match="--shard"):
            shard(work, wrong)


def test_what_is_named_wrongly_is_one_sentence(folder, tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        items([tmp_path / "gone"])
    with pytest.raises(UsageError, match="station replay"):
        items([tmp_path / "line.mcap"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no pictures"):
        items([tmp_path / "empty"])
    with pytest.raises(UsageError, match="name one only"):
        items([folder, folder])
    next(folder.rglob("p03.png")).with_suffix(".json").write_text("{")
    with pytest.raises(SourceError, match="not a result of the archive"):
        items([folder])


@pytest.fixture
def enrolled(folder, settings):
    """A real recipe of the shipped bundle, from the folder's own pictures."""
    bundle = load_bundle("nano")
    frames = [(i.key, cv2.imread(str(i.path))) for i in items([folder])][:24]
    args = RecipeArgs(name="test", noun="test part", mode="position")
    enroll(frames, args, lambda mode: Detector.open(bundle, mode), settings.recipe.root, shots=2)
    return settings


def test_two_processes_say_what_one_says(folder, enrolled, tmp_path):
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    reinspect(enrolled, items([folder]), one, 1)
    found = reinspect(enrolled, items([folder]), two, 2)
    assert found.parts == 40
    for a, b in zip(rows_of(one)[1], rows_of(two)[1], strict=True):
        assert (a["picture"], a["verdict"]) == (b["picture"], b["verdict"])
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_a_killed_worker_is_told_and_the_next_run_finishes(folder, enrolled, tmp_path, monkeypatch):
    out = tmp_path / "r.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(reinspect_work, "work", _die)
        with pytest.raises(StationError, match="killed"):
            reinspect(enrolled, items([folder]), out, 2)
    assert reinspect(enrolled, items([folder]), out, 1).parts == 40


@pytest.mark.slow
def test_a_cluster_says_what_one_process_says(folder, enrolled, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed (extra 'ray')")
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    reinspect(enrolled, items([folder]), one, 1)
    monkeypatch.chdir(tmp_path)  # paths of the command line may be relative, actors live elsewhere
    work = items([folder.relative_to(tmp_path)])
    assert reinspect(enrolled, work, many, 2, ray="local").fresh == 40
    head, rows = rows_of(many)
    assert head == rows_of(one)[0]
    for a, b in zip(rows_of(one)[1], rows, strict=True):
        assert (a["picture"], a["verdict"]) == (b["picture"], b["verdict"])
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)
    with pytest.raises(UsageError, match="the cluster has"):
        reinspect(enrolled, work, tmp_path / "x.jsonl", 4096, ray="local")


@pytest.mark.slow
def test_no_cluster_at_the_address_is_one_sentence(folder, enrolled, tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed (extra 'ray')")
    with pytest.raises(ConfigError, match=r"--ray 127.0.0.1:9: no cluster answers"):
        reinspect(enrolled, items([folder]), tmp_path / "r.jsonl", 2, ray="127.0.0.1:9")


def _die(_batch):
    import os

    os._exit(9)


def test_the_command(folder, settings, engine, tmp_path, monkeypatch):
    from station.reinspect_cli import reinspect as command

    app = typer.Typer()
    app.command()(command)
    monkeypatch.chdir(tmp_path)
    words = [str(folder), "--recipe", "test", "--workers", "1", "--out", "r.jsonl"]
    said = CliRunner().invoke(app, [*words, "--shard", "1/4"], catch_exceptions=False)
    assert said.exit_code == 0
    assert said.output.startswith("10 parts:")
    assert len(rows_of(tmp_path / "r.jsonl")[1]) == 10
    with pytest.raises(UsageError, match="name one with --recipe"):
        CliRunner().invoke(app, [str(folder)], catch_exceptions=False)
