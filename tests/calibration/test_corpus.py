"""What a corpus is named by and what it keeps of each picture; the stem is a double."""

import json
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from calibration import corpus as made  # noqa: E402
from calibration import train  # noqa: E402
from calibration.corpus import CorpusSpec, build_corpus  # noqa: E402
from calibration.descriptions import own_text  # noqa: E402
from calibration.stage_text import _own_texts  # noqa: E402
from engines.errors import SourceError, UsageError  # noqa: E402


@pytest.fixture
def stem(monkeypatch):
    """No network is run: features are noughts."""
    monkeypatch.setattr(
        made, "stem_features", lambda model, tiles: np.zeros((len(tiles), 272, 15, 15), np.float16)
    )


def picture(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((60, 80, 3), value, np.uint8))


def index_of(folder, rows):
    (folder / "index.jsonl").write_text("\n".join(json.dumps(r) for r in rows))


@pytest.fixture
def folder(tmp_path):
    """A set in capitals: four good parts and a crack to train on, one of each to validate."""
    home, rows = tmp_path / "MT", []
    for i in range(7):
        picture(home / f"{i}.png", 90 + 10 * i)
        normal = i not in (4, 6)
        rows.append(
            {
                "image": f"{i}.png", "mask": None if normal else f"{i}-mask.png",
                "category": "normal" if normal else "crack", "normal": normal,
                "split": "val" if i > 4 else "train",
            }
        )  # fmt: skip
    for i in (4, 6):
        mask = np.zeros((60, 80), np.uint8)
        mask[5:9, 50:78] = 255
        cv2.imwrite(str(home / f"{i}-mask.png"), mask)
    index_of(home, rows)
    return home


def spec_of(folder, **more):
    return CorpusSpec((str(folder),), variants=1, made_per_normal=0, kinds=0, **more)


def test_another_listing_is_another_corpus(folder, monkeypatch):
    keys = [spec_of(folder).key()]

    def changed():
        keys.append(spec_of(folder).key())
        return keys[-1] != keys[-2]

    picture(folder / "unlisted.png")
    assert not changed()
    picture(folder / "0.png", 3)
    os.utime(folder / "0.png", ns=(1, 1))
    assert changed()
    cv2.imwrite(str(folder / "4-mask.png"), np.full((60, 80), 255, np.uint8))
    os.utime(folder / "4-mask.png", ns=(2, 2))
    assert changed()
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    index_of(folder, [*rows[:4], {**rows[4], "category": "hole"}, *rows[5:]])
    assert changed()
    index_of(folder, rows[1:])
    assert changed()
    (folder / "1.json").write_text('{"text": "A thin scratch."}')
    assert changed()
    monkeypatch.chdir(folder.parent)
    assert spec_of("MT").key() == keys[-1]
    assert replace(spec_of("MT"), seed=1).key() != keys[-1]


def test_an_empty_split_and_two_sets_of_one_name_are_refused_in_a_sentence(folder, tmp_path, stem):
    with pytest.raises(SourceError, match="no picture in the split test"):
        build_corpus(spec_of(folder, split="test"), tmp_path / "c", None, say=lambda text: None)
    with pytest.raises(UsageError, match="both called mt"):
        train.main(["--data", str(folder), str(tmp_path / "x" / "mt"), "--out", str(tmp_path)])


class Reached(Exception):
    pass


def reach(monkeypatch, tmp_path, *argv):
    """What `calibration.train` gives to its first stage."""
    found = {}

    def stage(model, corpus, val, *rest, **more):
        found.update(corpus=corpus, val=val)
        raise Reached

    monkeypatch.setattr(train, "train_vision", stage)
    monkeypatch.setattr(train, "start_model", lambda path: (torch.nn.Identity(), None))
    out = ("--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"))
    with pytest.raises(Reached):
        train.main([*argv, *out, "--kinds", "1"])
    return found


def test_a_set_in_capitals_is_the_set_of_that_name_in_training(folder, monkeypatch, tmp_path, stem):
    found = reach(monkeypatch, tmp_path, "--data", str(folder))
    good, held = found["val"]["mt"]
    assert len(good.kind) == 4 and set(good.kind) == {"mt"}
    assert held.normal.tolist() == [True, False]


def test_a_set_in_capitals_can_be_left_out(folder, monkeypatch, tmp_path, stem):
    shutil.copytree(folder, tmp_path / "Lid")
    sets = ("--data", str(folder), str(tmp_path / "Lid"))
    for written in ("MT", "mt"):
        found = reach(monkeypatch, tmp_path, *sets, "--leave-out", written)
        assert list(found["val"]) == ["lid"]
        assert "mt" not in found["corpus"].by_kind
    with pytest.raises(UsageError, match="no set cfd to leave out"):
        train.main(["--data", str(folder), "--leave-out", "CFD", "--out", str(tmp_path / "o")])
    with pytest.raises(UsageError, match="every set of --data is left out"):
        train.main([*sets, "--leave-out", "MT", "Lid", "--out", str(tmp_path / "o")])


@pytest.mark.parametrize("wrong", [("--steps", "0", "3"), ("--kinds", "0"), ("--threads", "0")])
def test_numbers_that_make_no_training_are_refused(wrong):
    with pytest.raises(UsageError, match="must be at least 1"):
        train.parse(["--data", "x", *wrong])


def test_a_set_without_good_parts_to_train_on_is_named(folder, monkeypatch, tmp_path, stem):
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    index_of(folder, rows[4:])
    monkeypatch.setattr(train, "start_model", lambda path: (torch.nn.Identity(), None))
    out = ("--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"))
    with pytest.raises(SourceError, match="mt has no good part in its train split"):
        train.main(["--data", str(folder), *out, "--kinds", "1"])


def test_every_picture_has_a_text_and_says_who_wrote_it(folder, tmp_path, stem):
    rows = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
    index_of(folder, [{**rows[0], "text": "A clean tile.\n"}, *rows[1:]])
    (folder / "1.json").write_text('{"text": "Nothing wrong here."}')
    (folder / "2.json").write_text('{"shapes": []}')
    found = build_corpus(spec_of(folder), tmp_path / "c", None, say=lambda text: None)
    told = dict(zip(found.text.tolist(), found.written.tolist(), strict=True))
    assert told["A clean tile."] is True
    assert told["Nothing wrong here."] is True
    assert sum(found.written) == 2  # their flipped copies are described anew
    # The crack of the label lies at the top right; a copy may be flipped.
    crack = [t for t, c in zip(found.text, found.category, strict=True) if c == "crack"]
    assert crack[0].startswith("A clear grey-scale picture of a magnetic tile. The magnetic tile")
    assert "one crack defect at top right" in crack[0]
    assert not any(told[t] for t in crack)
    read = build_corpus(spec_of(folder), tmp_path / "c", None)
    assert read.text.tolist() == found.text.tolist()
    (folder / "2.json").write_text("{")
    with pytest.raises(SourceError, match=r"2\.json is no JSON file"):
        build_corpus(spec_of(folder), tmp_path / "c", None, say=lambda text: None)


def test_texts_that_a_person_wrote_are_trained_on_beside_derived_ones(folder, tmp_path, stem):
    (folder / "1.json").write_text('{"text": "Nothing wrong here."}')
    found = build_corpus(spec_of(folder), tmp_path / "c", None, say=lambda text: None)
    asked = []

    def cls(model, corpus, rows):
        asked.append(rows)
        return torch.zeros(len(rows), 3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calibration.stage_text._cls", cls)
        pool = _own_texts(None, found, np.random.default_rng(0))
        assert pool is not None
        assert pool[1] == found.text[asked[0]].tolist()
        assert "Nothing wrong here." in pool[1] and len(pool[1]) == len(found.text)
        found.written[:] = False
        assert _own_texts(None, found, np.random.default_rng(0)) is None


def test_an_empty_text_is_none():
    from pathlib import Path

    from calibration.datasets import Sample

    assert own_text(Sample(Path("/nowhere.png"), None, "normal", True, text="  ")) is None
