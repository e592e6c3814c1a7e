"""The demo picks honest parts, and its contact sheet shows heat where the map is hot."""

import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from engines.errors import SourceError, UsageError
from station import demo
from station.cli import _run
from station.demo_data import Part, folder, link, write_labels
from station.demo_sheet import HEAD, Card, contact_sheet, overlay


def _folder(root: Path, good: int, bad: int) -> Path:
    for name, count in (("good", good), ("bad", bad)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            picture = np.full((20, 30, 3), number, np.uint8)
            cv2.imwrite(str(root / name / f"{number:03d}.png"), picture)
    return root


def test_parts_shown_as_good_are_not_inspected_again(tmp_path: Path) -> None:
    parts = folder(_folder(tmp_path / "own", good=30, bad=5))
    assert {p.path for p in parts.normals}.isdisjoint(p.path for p in parts.batch)
    assert all(p.good for p in parts.normals)
    assert sum(not p.good for p in parts.batch) == 5


def test_links_point_at_the_pictures_and_copy_nothing(tmp_path: Path) -> None:
    parts = folder(_folder(tmp_path / "own", good=6, bad=2))
    linked = link(parts.batch, tmp_path / "batch")
    assert list(linked) == sorted(linked)
    for name, part in linked.items():
        assert (tmp_path / "batch" / name).is_symlink()
        assert (tmp_path / "batch" / name).resolve() == part.path.resolve()


@pytest.mark.parametrize("good,bad", [(0, 3), (3, 0)])
def test_a_folder_without_both_kinds_is_refused_in_a_sentence(
    tmp_path: Path, good: int, bad: int
) -> None:
    with pytest.raises(SourceError, match="good and defective"):
        folder(_folder(tmp_path / "own", good, bad))


def test_a_missing_folder_is_refused() -> None:
    with pytest.raises(SourceError, match="not a folder"):
        folder(Path("/nowhere/at/all"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: write"),
        ("[1]", "line 2: write"),
        ("null", "line 2: write"),
        ('{"image": "a.png"}', "line 2: write"),
        ('{"image": "gone.png", "normal": true}', "line 2: there is no picture"),
    ],
)
def test_an_index_that_is_wrong_names_its_line(tmp_path: Path, line: str, told: str) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 30, 3), np.uint8))
    index = tmp_path / "index.jsonl"
    index.write_text('{"image": "a.png", "normal": true}\n' + line + "\n")
    with pytest.raises(SourceError, match=told) as caught:
        folder(tmp_path)
    assert "\n" not in str(caught.value)
    index.write_bytes(b"\xff\xfe\n")
    with pytest.raises(SourceError, match="cannot be read"):
        folder(tmp_path)


def test_a_folder_with_files_of_others_is_refused_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, mine = _folder(tmp_path / "own", good=6, bad=2), tmp_path / "mine"
    (mine / "good").mkdir(parents=True)
    for name in ("ledger.db", "ledger.db-wal", "good/strange.png", "batch.csv"):
        (mine / name).write_text("mine")
    before = {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()}
    assert _run(["demo", "--data", str(own), "--out", str(mine)]) == 2
    said = capsys.readouterr()
    assert "mine holds files that no demo made" in said.err and said.out == ""
    assert {p: p.read_bytes() for p in mine.rglob("*") if p.is_file()} == before


def test_a_folder_of_the_demo_is_taken_again_but_strange_pictures_in_it_are_not(
    tmp_path: Path,
) -> None:
    parts = folder(_folder(tmp_path / "own", good=6, bad=2))
    for _ in range(2):
        out = demo.own_folder(tmp_path / "out")
        assert len(link(parts.normals, out / "good")) == len(list((out / "good").iterdir()))
    (out / "good" / "strange.png").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not of the demo"):
        link(parts.normals, demo.own_folder(out) / "good")
    assert (out / "good" / "strange.png").read_bytes() == b"mine"


def test_names_that_are_not_utf_8_become_links_and_labels_that_are(tmp_path: Path) -> None:
    wild = tmp_path / os.fsdecode(b"gr\xf6\xdfe.jpg")
    long = tmp_path / ("ä" * 120 + ".jpg")
    for path in (wild, long):
        path.write_bytes(b"x")
    linked = link([Part(path, True, "good") for path in (wild, long)], tmp_path / "batch")
    assert list(linked) == ["0001_gr__e.jpg", "0002_" + "ä" * 50 + ".jpg"]
    write_labels(linked, tmp_path / "batch.csv")
    assert "0001_gr__e.jpg,good" in (tmp_path / "batch.csv").read_text(encoding="utf-8")


def test_a_part_that_is_no_picture_has_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One broken file among the parts ended the whole demo at its last step."""
    drawn: list[str] = []
    monkeypatch.setattr(demo, "open_recipe", lambda *_: (None, None, None))
    monkeypatch.setattr(demo, "load_bundle", lambda _: None)
    monkeypatch.setattr(demo, "_card", lambda seen, *_: seen.file)
    monkeypatch.setattr(demo, "contact_sheet", lambda cards, *_: drawn.extend(cards))
    scores = {"broken.png": None, "low.png": 0.0, "high.png": 0.9}
    seen = [SimpleNamespace(file=f, result=SimpleNamespace(score=s)) for f, s in scores.items()]
    demo._sheet(tmp_path, seen, tmp_path / "sheet.png")  # type: ignore[arg-type]
    assert drawn == ["high.png", "low.png"]


def test_overlay_colours_only_the_hot_corner() -> None:
    picture = np.full((60, 60, 3), 128, np.uint8)
    heat = np.zeros((15, 15), np.float32)
    heat[10:, 10:] = 1.0
    hot = overlay(picture, heat, level=0.5)
    changed = np.abs(hot.astype(int) - picture).sum(2) > 30
    assert changed[50:, 50:].all()
    assert not changed[:30, :30].any()


def test_contact_sheet_holds_every_card(tmp_path: Path) -> None:
    card = Card(
        np.full((40, 80, 3), 90, np.uint8),
        np.zeros((15, 15), np.float32),
        0.5,
        "NG",
        "x",
        "a scratch",
        True,
        "right",
    )
    contact_sheet([card] * 4, tmp_path / "sheet.png", "four", columns=3)
    sheet = cv2.imread(str(tmp_path / "sheet.png"))
    assert sheet is not None
    one = sheet[HEAD:]
    rows = one.shape[0] // 2
    assert (one[:rows] < 100).any() and (one[rows:] < 100).any()  # two rows, both drawn
