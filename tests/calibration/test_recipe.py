import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from calibration.enroll import RecipeArgs, enroll, rebuild
from calibration.plausible import Plausibility, measure
from calibration.recipe import Recipe, load_recipe, read_toml, write_toml
from engines.errors import RecipeError
from engines.preprocess import Box
from tests.calibration.doubles import BrightnessDetector, anchors, frames


def enrolled(tmp_path):
    enroll(
        frames(30), RecipeArgs(name="lid"), lambda m: BrightnessDetector(), tmp_path,
        anchors=anchors,
    )  # fmt: skip
    return tmp_path


def test_toml_gives_back_an_equal_recipe(tmp_path):
    recipe = Recipe(
        name="lid-2",
        noun='so-called "lid" \\ größe',
        phrases=("{} with a crack", "rust"),
        region=Box(1, 2, 30, 40),
        tiles=(2, 3),
        mode="nearest",
        mm_per_px=0.05,
        camera={"exposure": 12, "auto": False, "name": "a b"},
    )
    write_toml(recipe, tmp_path / "recipe.toml")
    assert read_toml(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize("name", ["", "../lid", "a/b", ".lid", "x" * 65])
def test_a_recipe_name_cannot_leave_its_folder(tmp_path, name):
    with pytest.raises(ValueError, match="recipe name"):
        Recipe(name=name)
    with pytest.raises(RecipeError):
        load_recipe(tmp_path, name)


def test_an_unknown_recipe_says_which_are_known_and_how_to_make_one(tmp_path):
    enrolled(tmp_path)
    with pytest.raises(RecipeError, match=r"known: lid.*station enroll --recipe cap") as info:
        load_recipe(tmp_path, "cap")
    assert info.value.code == 8


def test_a_misspelt_key_is_named(tmp_path):
    enrolled(tmp_path)
    file = tmp_path / "lid/recipe.toml"
    file.write_text(file.read_text().replace("deadline_ms", "dedline_ms"))
    with pytest.raises(RecipeError, match="dedline_ms"):
        load_recipe(tmp_path, "lid")


def test_a_copied_folder_does_not_pass_for_another_recipe(tmp_path):
    shutil.copytree(enrolled(tmp_path) / "lid", tmp_path / "cap")
    with pytest.raises(RecipeError, match="its name is 'lid', its folder's 'cap'"):
        load_recipe(tmp_path, "cap")
    assert load_recipe(tmp_path, "lid").recipe.name == "lid"


@pytest.mark.parametrize(
    "wrong",
    [
        {"noun": " "},
        {"noun": "a\nb"},
        {"noun": "x" * 201},
        {"phrases": ("{",)},
        {"phrases": ("{}",)},
        {"phrases": ("rust", "")},
        {"deadline_ms": 99_999_999_999},
        {"mm_per_px": float("inf")},
        {"overlap": float("nan")},
    ],
)
def test_what_makes_no_sense_is_no_recipe(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(name="lid", **wrong)
    write_toml(Recipe(name="lid").model_copy(update=wrong), tmp_path / "recipe.toml")
    with pytest.raises(RecipeError) as told:
        read_toml(tmp_path / "recipe.toml")
    assert "Value error" not in str(told.value) and "\n" not in str(told.value)


def test_a_flipped_byte_in_the_memory_is_found(tmp_path):
    enrolled(tmp_path)
    file = tmp_path / "lid/memory.safetensors"
    body = bytearray(file.read_bytes())
    body[-5] ^= 1
    file.write_bytes(body)
    with pytest.raises(RecipeError, match=r"memory\.safetensors differs"):
        load_recipe(tmp_path, "lid")


def test_an_edited_noun_makes_the_recipe_stale_an_edited_deadline_does_not(tmp_path):
    enrolled(tmp_path)
    file = tmp_path / "lid/recipe.toml"
    text = file.read_text()
    file.write_text(text.replace("deadline_ms = 200", "deadline_ms = 500"))
    assert load_recipe(tmp_path, "lid").stale(BrightnessDetector()) is None
    file.write_text(text.replace('noun = "object"', 'noun = "cap"'))
    assert "edited" in load_recipe(tmp_path, "lid").stale(BrightnessDetector())


def test_plausibility_takes_good_parts_and_refuses_dark_bright_and_blurred_ones():
    import cv2

    rng = np.random.default_rng(0)
    parts = [rng.integers(60, 160, (240, 240, 3), np.uint8) for _ in range(5)]
    ranges = Plausibility.from_looks([measure(p) for p in parts])
    assert all(ranges.check(p) is None for p in parts)
    assert "too dark" in ranges.check(np.zeros((240, 240, 3), np.uint8))
    assert "too bright" in ranges.check(np.full((240, 240, 3), 255, np.uint8))
    blurred = cv2.GaussianBlur(parts[0], (0, 0), 1.5)
    assert ranges.check(blurred) is not None


def test_a_defect_does_not_make_a_part_implausible():
    rng = np.random.default_rng(0)
    parts = [rng.integers(60, 160, (240, 240, 3), np.uint8) for _ in range(5)]
    ranges = Plausibility.from_looks([measure(p) for p in parts])
    parts[0][100:140, 100:140] = 0
    assert ranges.check(parts[0]) is None


def test_recipe_and_enrolment_import_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import calibration.enroll, calibration.recipe, calibration.thresholds\n"
        "assert sys.modules['torch'] is None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_edited_region_is_refused_because_what_lies_outside_was_not_kept(tmp_path):
    enrolled(tmp_path)
    file = tmp_path / "lid/recipe.toml"
    file.write_text(file.read_text() + "region = { x = 1, y = 2, w = 20, h = 20 }\n")
    for use in (lambda: load_recipe(tmp_path, "lid"), lambda: rebuild(tmp_path / "lid", None)):
        with pytest.raises(RecipeError, match=r"'region' was edited.*the whole frame.*enrol again"):
            use()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, alpha):
    with pytest.raises(RecipeError, match=r"alpha .* between 0 and 1"):
        enroll(frames(3), RecipeArgs(name="lid"), None, tmp_path, alpha=alpha)


def test_more_tiles_than_pixels_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot cut .* fewer --tiles"):
        enroll(frames(3), RecipeArgs(name="lid", tiles=(256, 1)), None, tmp_path)


@pytest.mark.parametrize("value", ["0.99", "NaN", "0.0"])
def test_an_edited_threshold_is_refused(tmp_path, value):
    enrolled(tmp_path)
    file = tmp_path / "lid/calibration.json"
    text = re.sub(r'"threshold": *[0-9.e-]+', f'"threshold": {value}', file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"is not that of its .* held-out scores|is damaged"):
        load_recipe(tmp_path, "lid")
