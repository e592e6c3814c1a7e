"""The demo picks honest parts, and its contact sheet shows heat where the map is hot."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.errors import SourceError
from station.demo_data import folder, link
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
