import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.datasets import (
    Sample,
    choose_shots,
    load_dataset,
    read_image,
    read_mask,
    set_name,
    small_mask,
    split_samples,
)
from engines.errors import SourceError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
shared = pytest.mark.shared
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")


def picture(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((20, 30, 3), value, np.uint8))


def test_mvtec_layout(tmp_path):
    picture(tmp_path / "train/good/000.png")
    picture(tmp_path / "test/good/001.png")
    picture(tmp_path / "test/crack/000.png")
    picture(tmp_path / "test/hole/000.png")
    picture(tmp_path / "ground_truth/crack/000_mask.png", 255)
    samples = load_dataset(tmp_path).samples
    assert Counter(s.category for s in samples) == {"normal": 2, "crack": 1, "hole": 1}
    by = {s.category: s for s in samples if not s.normal}
    assert by["crack"].mask.name == "000_mask.png"
    assert by["hole"].mask is None and not by["hole"].located


def test_visa_layout(tmp_path):
    picture(tmp_path / "Data/Images/Normal/0000.JPG")
    picture(tmp_path / "Data/Images/Anomaly/000.JPG")
    picture(tmp_path / "Data/Masks/Anomaly/000.png", 1)
    samples = load_dataset(tmp_path).samples
    assert [s.normal for s in samples] == [False, True]
    assert samples[0].located


def test_visa_masks_of_small_class_numbers_are_defect(tmp_path):
    picture(tmp_path / "Data/Images/Normal/0000.JPG")
    picture(tmp_path / "Data/Images/Anomaly/000.JPG")
    (tmp_path / "Data/Masks/Anomaly").mkdir(parents=True)
    classes = np.zeros((20, 30), np.uint8)
    classes[2:4, 5:9], classes[10, 20] = 1, 7
    cv2.imwrite(str(tmp_path / "Data/Masks/Anomaly/000.png"), classes)
    mask = read_mask(load_dataset(tmp_path).samples[0], (20, 30))
    assert np.array_equal(mask, classes > 0)


def test_mt_layout(tmp_path):
    for category in ("Free", "Crack"):
        picture(tmp_path / f"MT_{category}/Imgs/exp1.jpg")
        picture(tmp_path / f"MT_{category}/Imgs/exp1.png", 255)
    samples = load_dataset(tmp_path).samples
    assert {s.category: s.normal for s in samples} == {"normal": True, "crack": False}


def test_bsdata_layout_draws_outlines_as_masks(tmp_path):
    picture(tmp_path / "data/a.jpg")
    picture(tmp_path / "data/b.jpg")
    (tmp_path / "label").mkdir()
    shape = {"points": [[5, 5], [10, 5], [10, 12], [5, 12]]}
    (tmp_path / "label/b.json").write_text(json.dumps({"shapes": [shape]}))
    samples = load_dataset(tmp_path).samples
    assert [s.normal for s in samples] == [True, False]
    mask = read_mask(samples[1], (20, 30))
    assert mask[8, 7] and not mask[2, 2] and mask.sum() == 6 * 8


def test_cfd_layout_knows_its_crack_free_images(tmp_path):
    for stem in ("001", "204"):
        picture(tmp_path / f"cfd_image/{stem}.jpg")
        picture(tmp_path / f"seg_gt/{stem}.png", 255)
    samples = load_dataset(tmp_path).samples
    assert [s.normal for s in samples] == [False, True]


def test_good_and_bad_folders(tmp_path):
    picture(tmp_path / "good/1.png")
    picture(tmp_path / "bad/2.png")
    picture(tmp_path / "masks/2.png", 255)
    samples = load_dataset(tmp_path).samples
    assert [(s.normal, s.mask is not None) for s in samples] == [(False, True), (True, False)]


def test_an_unknown_layout_says_what_is_known(tmp_path):
    with pytest.raises(SourceError, match=r"index\.jsonl"):
        load_dataset(tmp_path)
    with pytest.raises(SourceError, match="no folder"):
        load_dataset(tmp_path / "nothing")


def test_a_broken_index_line_is_named(tmp_path):
    (tmp_path / "index.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(SourceError, match="line 1"):
        load_dataset(tmp_path)


ROW = {"image": "a.png", "mask": None, "category": "crack", "normal": False, "split": "train"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"normal": "false"}, "'normal' must be bool, not \"false\""),
        ({"normal": 0}, "'normal' must be bool, not 0"),
        ({"split": "validation"}, "'split' must be one of train, val, test, not \"validation\""),
        ({"split": None}, "'split' must be str, not null"),
        ({"category": 3}, "'category' must be str, not 3"),
        ({"mask": 1}, "'mask' must be str or null, not 1"),
        ({"text": ["a"]}, "'text' must be str or null"),
    ],
)
def test_a_value_of_the_wrong_sort_in_an_index_is_named_with_its_line(tmp_path, changed, said):
    rows = [ROW, {**ROW, **changed}]
    (tmp_path / "index.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    with pytest.raises(SourceError, match="line 2") as told:
        load_dataset(tmp_path)
    assert said in str(told.value)


def test_an_index_of_rows_that_are_no_objects_or_no_text_is_one_sentence(tmp_path):
    index = tmp_path / "index.jsonl"
    for content in (b"[1]", b"\xff\xfe\x00", b"{"):
        index.write_bytes(content)
        with pytest.raises(SourceError, match=r"index\.jsonl"):
            load_dataset(tmp_path)


def test_a_set_is_called_the_same_however_its_folder_is_written(tmp_path, monkeypatch):
    (tmp_path / "MT").mkdir()
    monkeypatch.chdir(tmp_path / "MT")
    names = [set_name(Path(p)) for p in (".", "../MT", "../MT/", str(tmp_path / "MT"))]
    assert names == ["mt"] * 4


def many(category, count, normal=False):
    return [Sample(Path(f"{category}/{i:04d}.png"), None, category, normal) for i in range(count)]


def test_split_is_70_15_15_per_category_and_seeded():
    samples = many("normal", 200, True) + many("crack", 100)
    once, again = split_samples(samples), split_samples(samples[::-1])
    assert once == again
    count = Counter((s.category, s.split) for s in once)
    assert count["normal", "train"] == 140 and count["normal", "test"] == 30
    assert count["crack", "val"] == 15


def test_a_small_defect_category_gives_ten_to_test():
    count = Counter(s.split for s in split_samples(many("fray", 20)))
    assert count["test"] == 10 and count["val"] == 3 and count["train"] == 7
    assert Counter(s.split for s in split_samples(many("fray", 6))) == {"test": 6}


def test_shots_are_nested_and_follow_the_stated_rule():
    normals = many("normal", 50, True)
    order = np.random.default_rng([42, 3]).permutation(50)
    names = [f"{i:04d}" for i in order[:4]]
    assert [s.image.stem for s in choose_shots(normals[::-1], 4, 3)] == names
    assert choose_shots(normals, 2, 3) == choose_shots(normals, 4, 3)[:2]


def test_a_file_that_is_no_image_is_named(tmp_path):
    bad = tmp_path / "x.jpg"
    bad.write_text("hello")
    with pytest.raises(SourceError, match=r"x\.jpg is not a readable image"):
        read_image(Sample(bad, None, "normal", True))


def test_grey_rims_count_from_128_and_small_masks_are_nearest(tmp_path):
    grey = np.zeros((240, 480), np.uint8)
    grey[10, 20], grey[10, 22] = 128, 127
    cv2.imwrite(str(tmp_path / "m.png"), grey)
    mask = read_mask(Sample(Path("x"), tmp_path / "m.png", "a", False), (240, 480))
    assert mask.sum() == 1 and mask[10, 20]
    assert small_mask(np.kron(np.eye(4), np.ones((120, 120))) > 0).mean() == 0.25


@shared
@needs_shared
def test_the_shared_sets_have_the_stated_counts():
    stated = {"mt": (668, 198), "bsdata": (495, 165), "cfd": (87, 18)}
    for name, (train, val) in stated.items():
        dataset = load_dataset(SHARED / name)
        assert (len(dataset.of("train")), len(dataset.of("val"))) == (train, val)


@shared
@needs_shared
def test_four_uneven_masks_are_missing_and_spots_repeat():
    mt, bsdata = (load_dataset(SHARED / n) for n in ("mt", "bsdata"))
    assert sum(not s.located for s in mt.samples) == 3  # the fourth is in the test split
    train = {s.spot for s in bsdata.of("train")}
    val = [s.spot in train for s in bsdata.of("val")]
    assert np.mean(val) > 0.5
