"""Evaluation of small and one-class sets: what is undefined is null and says why. No engine."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from calibration import evaluate as stage
from calibration import tiles
from calibration.engine_run import Encoded, EngineRun, Found, load_labelled
from calibration.promise import enrolments
from calibration.report import main as report
from engines.errors import EngineError, SourceError, UsageError

BUNDLE = SimpleNamespace(sha="b", manifest=SimpleNamespace(trained="a little"), path="bundle")


class Brightness:
    """EngineRun's double: the score and map of a picture is its brightness."""

    def __init__(self, bundle, threads=1):
        self.bundle = bundle

    def encode(self, tiles):
        cls = tiles.reshape(len(tiles), 240 * 240 * 3).mean(1, keepdims=True) / 255
        return Encoded(cls.astype(np.float32), (cls, cls, cls))

    def learn(self, shots, anchors):
        return None, anchors

    def detect(self, encoded, anchors, memory, mode):
        count = len(encoded.cls)
        assert count, "an engine is never asked about nothing"
        maps = np.broadcast_to(encoded.cls[:, :, None], (count, 240, 240)).copy()
        grid = np.ones((count, 15, 15, 3), np.float32)
        return Found(maps, encoded.cls[:, 0], grid, grid)

    def fused_difference(self, *given):
        return 0.0

    def time_per_image(self, *given):
        return 1.0


@pytest.fixture(autouse=True)
def double(monkeypatch):
    monkeypatch.setattr(stage, "EngineRun", Brightness)
    monkeypatch.setattr(stage, "load_bundle", lambda name: BUNDLE)
    anchors = np.eye(2, 3, dtype=np.float32)
    text = SimpleNamespace(anchors=lambda noun: anchors)
    monkeypatch.setattr(stage.TextEncoder, "open", lambda bundle: text)


def set_of(home, **counts):
    """`good_train=3, bad_val=2`: pictures of one grey each, defects with a mask."""
    home.mkdir()
    rows = []
    for key, count in counts.items():
        kind, split = key.split("_")
        for i in range(count):
            name = f"{key}{i}.png"
            cv2.imwrite(str(home / name), np.full((40, 50, 3), 20 + 30 * i, np.uint8))
            mask = np.zeros((40, 50), np.uint8)
            mask[10:20, 10:30] = 255
            cv2.imwrite(str(home / f"m{name}"), mask)
            normal = kind == "good"
            rows.append(
                {
                    "image": name, "mask": None if normal else f"m{name}", "normal": normal,
                    "category": "normal" if normal else "crack", "split": split,
                }
            )  # fmt: skip
    (home / "index.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return home


def judged(home, *more):
    """The JSON of one set, read strictly, and the page made of it."""
    path = home.parent / "r.json"
    stage.evaluate(stage.parse(["--data", str(home), "--json", str(path), "--runs", "2", *more]))

    def strict(word):
        raise AssertionError(f"{word} is not JSON")

    body = json.loads(path.read_text(), parse_constant=strict)
    report([str(path), "--out", str(home.parent / "page.md")])
    return body["sets"][home.name]["ours"], (home.parent / "page.md").read_text()


def test_good_pictures_alone_give_rates_and_reasons(tmp_path):
    ours, page = judged(set_of(tmp_path / "lid", good_train=4, good_val=3), "--shots", "0", "1")
    assert ours["1"]["mean"]["false_reject"] is not None
    for name in ("image", "pixel", "pro", "native", "caught"):
        assert ours["1"]["mean"][name] is None
    assert ours["1"]["reasons"]["image"] == "no defective picture is judged"
    assert ours["1"]["reasons"]["caught"] == "no defective picture is judged"
    assert ours["0"]["reasons"]["pixel"] == "no defect with a labelled place is judged"
    assert "- Image-AUC (0, 1 shots): no defective picture is judged." in page


def test_defects_alone_have_a_pixel_figure_and_no_false_rejects(tmp_path):
    ours, page = judged(set_of(tmp_path / "lid", good_train=4, bad_val=2), "--shots", "1")
    assert ours["1"]["mean"]["pixel"] is not None and ours["1"]["mean"]["native"] is not None
    assert ours["1"]["mean"]["false_reject"] is None
    assert ours["1"]["reasons"]["false_reject"] == "no good picture is judged"
    assert "- false rejects (1 shots): no good picture is judged." in page


def test_nothing_to_hold_out_and_too_few_good_parts_are_said(tmp_path):
    home = set_of(tmp_path / "lid", good_train=1, good_val=2, bad_val=2)
    look = ("--look", str(tmp_path / "look"), "--ablations")
    ours, page = judged(home, "--shots", "0", "1", "2", *look)
    assert ours["1"]["mean"]["image"] is not None
    assert ours["1"]["mean"]["false_reject"] is None
    held = "no good part of the train split is left to hold out"
    assert ours["1"]["reasons"] == dict.fromkeys(("false_reject", "caught", "said"), held)
    few = "2 shots asked for, 1 good parts in the train split"
    assert ours["2"]["reasons"]["image"] == few
    assert f"- AUPRO (2 shots): {few}." in page


def test_a_set_without_a_good_part_to_learn_from_is_judged_at_no_shots(tmp_path):
    home = set_of(tmp_path / "lid", good_val=2, bad_val=2)
    look = ("--look", str(tmp_path / "look"), "--ablations", "--baselines")
    ours, _ = judged(home, "--shots", "0", "1", *look)
    assert ours["0"]["mean"]["image"] is not None
    assert ours["1"]["mean"]["image"] is None


def test_an_empty_split_and_senseless_numbers_are_refused(tmp_path):
    home = set_of(tmp_path / "lid", good_train=2)
    with pytest.raises(SourceError, match="lid has no picture in the split val"):
        judged(home)
    for wrong in (("--runs", "0"), ("--shots", "-1")):
        with pytest.raises(UsageError):
            judged(home, *wrong)


def test_an_enrolment_needs_parts_to_hold_out_and_fresh_ones(tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.promise.TextEncoder", stage.TextEncoder)
    home = set_of(tmp_path / "lid", good_val=4)
    with pytest.raises(SourceError, match="4 distinct good parts"):
        enrolments(str(home), Brightness(BUNDLE), 1, 3, 0.05)
    assert len(enrolments(str(home), Brightness(BUNDLE), 1, 2, 0.05)) == 1


def test_tiles_count_an_unlocated_defect_by_picture_alone_and_say_what_is_undefined(tmp_path):
    home = set_of(tmp_path / "lid", good_train=2, good_val=2, bad_val=2)
    text = (home / "index.jsonl").read_text().replace('"mbad_val0.png"', "null")
    (home / "index.jsonl").write_text(text)
    args = SimpleNamespace(split="val", overlap=0.1, runs=1, shots=1)

    def judged_by(root):
        return tiles.judge(Brightness(BUNDLE), stage.load_dataset(root), (1, 1), args)

    found = judged_by(home)
    assert found["mean"]["pixel"] is not None and found["mean"]["image"] == 50
    calm = set_of(tmp_path / "calm", good_train=2, good_val=2)
    alone = judged_by(calm)
    assert alone["mean"] == {"image": None, "pixel": None}
    assert alone["reasons"]["image"] == "no defective picture is judged"


class Session:
    """The pieces' double: shapes of the nano, and a score that is no number if asked for."""

    def __init__(self, score):
        self.score = score

    def run(self, feeds):
        if "tiles" in feeds:
            n = len(feeds["tiles"])
            taps = {f"tap_{k}": np.ones((n, 225, 4), np.float32) for k in "abc"}
            return {"cls": np.ones((n, 3), np.float32), **taps}
        n = len(feeds["anchors"])
        p = np.ones((n, 15, 15, 3), np.float32)
        return {"p": p, "map": np.ones((n, 240, 240)), "score": np.full(n, self.score)}


def test_nothing_is_encoded_to_nothing_and_an_answer_that_is_no_number_is_an_error(monkeypatch):
    run = EngineRun(BUNDLE)
    score = [0.5]
    monkeypatch.setattr(run, "_session", lambda kind, mode=None: Session(score[0]))
    none = load_labelled([])
    assert none.tiles.shape == (0, 240, 240, 3) and none.masks.dtype == bool
    empty = run.encode(none.tiles)
    assert empty.cls.shape == (0, 3) and empty.taps[0].shape == (0, 225, 4)
    one, anchors = run.encode(np.zeros((1, 240, 240, 3), np.uint8)), np.eye(2, 3)
    assert run.detect(one, anchors, None, "bank").scores.tolist() == [0.5]
    score[0] = np.nan
    with pytest.raises(EngineError, match="no number"):
        run.detect(one, anchors, None, "bank")
