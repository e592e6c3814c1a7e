"""Which frames the gate judges: as many as it must, of the folder that was named, or none."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.errors import EngineError
from export.frames import draw
from export.gate_data import find_data
from export.gate_frames import LEAST, gate_sets


def make_set(root, good=4, spare=4, bad=4, masks=True):
    """A set of drawn parts: good ones in train, `spare` good and `bad` defective ones in val."""
    root.mkdir(parents=True)
    rows = []
    kinds = [(True, "train")] * good + [(True, "val")] * spare + [(False, "val")] * bad
    for i, (normal, split) in enumerate(kinds):
        part = draw(i, defective=not normal)
        cv2.imwrite(str(root / f"{i:03d}.png"), part.image)
        mask = None
        if masks and not normal:
            mask = f"{i:03d}.mask.png"
            cv2.imwrite(str(root / mask), part.mask)
        row = {"image": f"{i:03d}.png", "mask": mask, "normal": normal, "split": split}
        rows.append({**row, "category": "x"})
    (root / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def counted(sets):
    return {s.name: len(s.frames) for s in sets}


@pytest.mark.parametrize(
    ("shape", "counts"),
    [
        ({"one": (3, 20, 20)}, {"one": 32}),
        ({"one": (3, 40, 3)}, {"one": 32}),
        ({"one": (3, 0, 40)}, {"one": 32, "drawn0": 12}),  # without a good part there is no AUC
        ({"one": (3, 2, 3)}, {"one": 5, "drawn0": 12, "drawn1": 12, "drawn2": 12}),
        ({"one": (3, 9, 9), "two": (3, 9, 9)}, {"one": 16, "two": 16}),
        ({"one": (3, 9, 9), "two": (3, 1, 1)}, {"one": 16, "two": 2, "drawn0": 12, "drawn1": 12}),
    ],
)
def test_the_gate_judges_at_least_32_frames_whatever_the_sets_hold(tmp_path, shape, counts):
    for name, (good, spare, bad) in shape.items():
        make_set(tmp_path / name, good, spare, bad)
    sets = gate_sets(find_data(str(tmp_path)))
    assert counted(sets) == counts
    assert sum(counts.values()) >= LEAST
    for part in sets:
        assert part.references
        assert part.held_out


def test_defects_that_nobody_marked_need_drawn_ones_beside_them(tmp_path):
    make_set(tmp_path / "one", 3, 20, 20, masks=False)
    assert counted(gate_sets(find_data(str(tmp_path)))) == {"one": 32, "drawn0": 12}


def test_an_empty_mask_says_nothing_about_where(tmp_path):
    """Masks of class numbers (VisA) have no pixel above 127: their defects counted as good."""
    root = make_set(tmp_path / "one", 3, 20, 20)
    for path in root.glob("*.mask.png"):
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(path), (mask > 0).astype(np.uint8))
    frames = gate_sets(find_data(str(root)))[0].frames
    assert all(f.mask is None for f in frames if not f.normal)


@pytest.mark.parametrize(("good", "spare", "bad"), [(0, 9, 9), (1, 9, 9), (5, 0, 0)])
def test_a_set_that_cannot_be_enrolled_or_judged_is_refused_by_name(tmp_path, good, spare, bad):
    root = make_set(tmp_path / "one", good, spare, bad)
    with pytest.raises(EngineError, match=f"set {root} cannot be used") as error:
        gate_sets(find_data(str(tmp_path)))
    assert f"(has {good})" in str(error.value)


def test_no_part_sets_its_own_threshold(tmp_path):
    """With two good parts one is the reference and the other gives the threshold."""
    part = gate_sets(find_data(str(make_set(tmp_path / "one", 2, 20, 20))))[0]
    assert len(part.references) == len(part.held_out) == 1
    assert not np.array_equal(part.references[0], part.held_out[0])


def test_only_the_usual_place_may_be_missing_and_then_it_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_data(None).identity == "drawn"
    assert "no folder at ../shared/data" in find_data(None).told
    assert find_data("drawn").told == "gate frames: drawn parts, as asked for"
    for named in ("../shared/data", "no/such/folder", str(tmp_path), ""):
        with pytest.raises(EngineError, match="--data: no"):
            find_data(named)
    assert sum(counted(gate_sets(find_data("drawn"))).values()) >= LEAST


def test_identity_follows_rows_and_files(tmp_path):
    root = make_set(tmp_path / "sets" / "one")
    folder, same = str(root.parent), find_data(str(root.parent)).identity
    assert find_data(folder).identity == same
    assert find_data(str(root)).identity == same
    text = (root / "index.jsonl").read_text()
    (root / "index.jsonl").write_text(text.replace('"train"', '"test"', 1))
    assert find_data(folder).identity != same
    (root / "index.jsonl").write_text(text)
    assert find_data(folder).identity == same
    (root / "000.png").write_bytes(b"")
    assert find_data(folder).identity != same


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: "),
        ("[]", "line 2: 'image' must"),
        ('{"image": "x.png", "normal": "no", "split": "val"}', "line 2: 'normal' must"),
        ('{"image": "x.png", "normal": true}', "line 2: 'split' must"),
        ('{"image": "x.png", "normal": true, "split": "val", "mask": 3}', "line 2: 'mask' must"),
    ],
)
def test_a_damaged_index_names_the_line(tmp_path, line, told):
    (tmp_path / "one").mkdir()
    good = '{"image": "x.png", "normal": true, "split": "val", "mask": null}\n'
    (tmp_path / "one" / "index.jsonl").write_text(good + line)
    with pytest.raises(EngineError, match=told):
        find_data(str(tmp_path))


def test_a_missing_picture_is_named(tmp_path):
    root = make_set(tmp_path / "one")
    (root / "000.png").unlink()
    with pytest.raises(EngineError, match=r"000\.png cannot be read"):
        gate_sets(find_data(str(root)))


@pytest.mark.shared
def test_real_frames_come_from_all_three_sets(request):
    folder = Path(request.config.rootpath).parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data on this machine")
    sets = gate_sets(find_data(str(folder)))
    assert [s.name for s in sets] == ["bsdata", "cfd", "mt"]
    assert sum(len(s.frames) for s in sets) >= LEAST
    for s in sets:
        assert any(f.mask is not None and f.mask.any() for f in s.frames)
        assert s.references
        assert s.held_out
