import numpy as np
import pytest

from calibration.enroll import (
    RecipeArgs,
    confirm,
    default_shots,
    enroll,
    inspect,
    open_recipe,
    part_score,
    rebuild,
)
from calibration.recipe import list_recipes, load_recipe
from engines.errors import InUseError, RecipeError
from engines.preprocess import Box
from tests.calibration.doubles import BrightnessDetector, anchors, frames


def run(tmp_path, count=30, detector=None, **kw):
    args = kw.pop("args", RecipeArgs(name="lid", noun="lid"))
    maker = detector or BrightnessDetector()
    return enroll(frames(count), args, lambda mode: maker, tmp_path, anchors=anchors, **kw)


def bright(name, level, size=(60, 80)):
    return name, np.full((*size, 3), level, np.uint8)


def test_first_parts_are_remembered_and_the_rest_set_the_threshold(tmp_path):
    report = run(tmp_path, 30, shots=5)
    assert report.shots == tuple(f"part{i:03d}" for i in range(5))
    assert report.held_out == 25
    assert report.learning is False
    loaded = load_recipe(tmp_path, "lid")
    assert loaded.memory.taps[0].shape == (1, 4, 225, 4)
    assert loaded.threshold == max(report.scores)
    assert loaded.recipe.noun == "lid"
    low, high = report.interval
    assert 0.0 <= low < high < 0.25
    assert report.histogram.is_file()


@pytest.mark.parametrize(("cue", "trusted"), [(0.05, 1.0), (0.95, (0.05 / 0.95 * np.e**2) ** 3)])
def test_a_cue_that_calls_the_good_parts_abnormal_is_doubted_from_then_on(tmp_path, cue, trusted):
    detector = BrightnessDetector(cue=cue)
    report = run(tmp_path, 30, detector)
    assert ("in part" in report.trust) == (trusted < 1)
    loaded = load_recipe(tmp_path, "lid")
    assert loaded.calibration.trust == pytest.approx(trusted, rel=1e-3)
    for bound in (detector.anchors, loaded.anchors):
        assert np.linalg.norm(bound, axis=-1) == pytest.approx(trusted, rel=1e-3)


def test_too_few_good_parts_enrol_as_learning(tmp_path):
    report = run(tmp_path, 10)
    assert report.learning is True
    assert report.interval is None
    assert "19 needed" in report.guarantee
    assert load_recipe(tmp_path, "lid").recipe.learning is True


def test_confirmed_parts_end_the_learning(tmp_path):
    run(tmp_path, 10)
    loaded = confirm(
        tmp_path / "lid", frames(20, start=100), lambda m: BrightnessDetector(), anchors=anchors
    )
    assert loaded.recipe.learning is False
    assert loaded.calibration.n == 26
    assert len(loaded.calibration.shots) == 4


def test_the_same_frame_twice_counts_once(tmp_path):
    twice = [*frames(12), *frames(12)]
    report = enroll(
        twice, RecipeArgs(name="lid"), lambda m: BrightnessDetector(), tmp_path, anchors=anchors
    )
    assert len(report.duplicates) == 12
    assert len(report.shots) + report.held_out == 12


def test_a_changed_engine_rebuilds_memory_and_threshold_from_references(tmp_path):
    before = run(tmp_path, 30)
    newer = BrightnessDetector(sha="engine-2", shift=0.1)
    loaded, detector, reason = open_recipe(tmp_path, "lid", lambda m: newer, anchors=anchors)
    assert "engine file changed" in reason
    assert loaded.threshold == pytest.approx(before.threshold + 0.1, abs=1e-6)
    assert detector.bound is not None
    again, _, none = open_recipe(tmp_path, "lid", lambda m: newer, anchors=anchors)
    assert none is None
    assert again.sha == loaded.sha


def test_rebuilding_with_the_same_engine_changes_no_bit(tmp_path):
    run(tmp_path, 30)
    first = load_recipe(tmp_path, "lid")
    second = rebuild(tmp_path / "lid", lambda m: BrightnessDetector(), anchors=anchors)
    assert second.calibration.scores == first.calibration.scores
    assert second.calibration.memory_sha256 == first.calibration.memory_sha256


def test_a_damaged_reference_is_named(tmp_path):
    run(tmp_path, 10)
    (tmp_path / "lid/references/0003.png").write_bytes(b"not a picture")
    with pytest.raises(RecipeError, match=r"0003\.png"):
        rebuild(tmp_path / "lid", lambda m: BrightnessDetector(), anchors=anchors)


def test_the_region_alone_is_kept_and_scored(tmp_path):
    args = RecipeArgs(name="lid", region=Box(10, 5, 40, 30), mode="position", tiles=(1, 2))
    report = run(tmp_path, 30, args=args, shots=4)
    loaded = load_recipe(tmp_path, "lid")
    assert loaded.memory.taps[0].shape == (2, 4, 225, 4)
    detector = BrightnessDetector()
    detector.bind(loaded.memory, loaded.anchors)
    name, frame = next(frames(1, start=4))
    assert name == "part004"
    live = part_score(inspect(detector, loaded.recipe, frame))
    assert live == pytest.approx(report.scores[0], abs=1e-7)


def test_a_region_outside_the_frame_is_refused(tmp_path):
    args = RecipeArgs(name="lid", region=Box(70, 5, 40, 30))
    with pytest.raises(RecipeError, match="80x60"):
        run(tmp_path, args=args)


def test_no_frame_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="no frame"):
        run(tmp_path, 0)


def test_more_shots_than_parts_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="8 shots asked for but 3 distinct"):
        run(tmp_path, 3, shots=8)


def test_enrolling_again_keeps_the_older_recipe_aside(tmp_path):
    run(tmp_path, 30)
    old = load_recipe(tmp_path, "lid").sha
    run(tmp_path, 25, shots=4)
    assert load_recipe(tmp_path, "lid").sha != old
    assert (tmp_path / ".lid.previous" / "recipe.toml").is_file()
    assert list_recipes(tmp_path) == ["lid"]


def test_a_failed_enrolment_leaves_the_older_recipe_alone(tmp_path):
    run(tmp_path, 30)
    old = load_recipe(tmp_path, "lid").sha
    with pytest.raises(RecipeError):
        run(tmp_path, 3, shots=8)
    assert load_recipe(tmp_path, "lid").sha == old


def test_defects_choose_the_memory_mode(tmp_path):
    quality = {"bank": 0.0, "nearest": 0.0, "position": 0.9}

    class Fussy(BrightnessDetector):
        def run(self, tiles, group=None):
            answer = super().run(tiles, group)
            bright = float(tiles.mean()) > 150
            object.__setattr__(answer, "score", answer.score + bright * quality[self.mode])
            return answer

    dark = np.full((60, 80, 3), 10, np.uint8)
    bright = np.full((60, 80, 3), 200, np.uint8)
    # Only `position` sees the bright defect; the dark one scores below every good part.
    report = enroll(
        frames(30),
        RecipeArgs(name="lid"),
        lambda mode: Fussy(mode=mode, shift=0.0 if mode == "position" else -0.6),
        tmp_path,
        defects=[("a", bright), ("b", dark)],
        anchors=anchors,
    )
    assert report.mode in {"bank", "nearest", "position"}
    assert "Image-AUC on 2 defects" in report.chosen_by


@pytest.mark.parametrize(("parts", "shots"), [(1, 1), (5, 2), (10, 4), (23, 4), (30, 11), (90, 16)])
def test_default_shots_leave_what_the_threshold_needs(parts, shots):
    assert default_shots(parts) == shots


def test_progress_is_told(tmp_path):
    told = []
    run(tmp_path, 10, progress=lambda *a: told.append(a))
    assert ("scoring held-out parts", 6, 6) in told
    assert any(stage == "reading good parts" for stage, _, _ in told)


def test_a_defect_among_the_good_parts_is_named(tmp_path):
    report = made(tmp_path, [*frames(30), bright("oops.png", 250)])
    assert report.odd == ("oops.png (0.98)",)
    assert made(tmp_path, frames(30)).odd == ()


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (bright("big.png", 100, (90, 100)), "big.png is 100x90 px where the others are 80x60"),
        (bright("black.png", 1), "black.png looks like none of the good parts"),
    ],
)
def test_a_picture_unlike_the_good_parts_is_not_confirmed_by_mistake(tmp_path, picture, told):
    made(tmp_path, frames(30))
    before = (tmp_path / "lid/calibration.json").read_bytes()
    with pytest.raises(RecipeError, match=rf"{told}.*confirm with --yes"):
        confirm(tmp_path / "lid", [picture], factory, anchors=anchors)
    assert (tmp_path / "lid/calibration.json").read_bytes() == before
    assert not (tmp_path / ".lid.part").exists()


def test_a_part_that_scores_far_above_the_others_needs_a_second_look(tmp_path):
    dull = [(name, (image // 2).astype(np.uint8)) for name, image in frames(30)]
    made(tmp_path, dull)
    part = [("pit.png", np.clip(dull[0][1].astype(int) + 50, 0, 255).astype(np.uint8))]
    with pytest.raises(RecipeError, match=r"pit.png \(0\.\d+\) far above the other good parts"):
        confirm(tmp_path / "lid", part, factory, anchors=anchors)
    sure = confirm(tmp_path / "lid", part, factory, anchors=anchors, sure=True)
    assert sure.calibration.held_out[-1].name == "pit.png"


def test_two_makers_of_one_recipe_do_not_mix(tmp_path):
    def second(_stage, _done, _total):
        with pytest.raises(InUseError, match="'lid' is being made by another process"):
            made(tmp_path, frames(30))

    enroll(frames(30), RecipeArgs(name="lid"), factory, tmp_path, anchors=anchors, progress=second)
    assert load_recipe(tmp_path, "lid").calibration.n > 0
    assert not (tmp_path / ".lid.part").exists()


def test_power_lost_between_the_two_renames_brings_the_older_recipe_back(tmp_path):
    made(tmp_path, frames(30))
    (tmp_path / "lid").rename(tmp_path / ".lid.previous")
    with pytest.raises(RecipeError, match="no recipe 'lid'"):
        load_recipe(tmp_path, "lid")  # a person has removed it
    (tmp_path / ".lid.part").mkdir()  # the newer one, on its way
    assert load_recipe(tmp_path, "lid").calibration.n > 0


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match="check the folder and its rights"):
        made(tmp_path / "file", frames(30))


def made(folder, parts):
    return enroll(parts, RecipeArgs(name="lid"), factory, folder, anchors=anchors)


def factory(_mode):
    return BrightnessDetector()
