"""What the map says: regions, places, shapes, sizes, colours; and words held against it."""

import numpy as np
import pytest

from engines.consistency import contradiction, places_in
from engines.describer import DescribeRequest, slim
from engines.facts import (
    Area,
    cell_of,
    colour_word,
    confidence_word,
    extent_and_shape,
    half_peak_level,
    location_word,
    name_colour,
    part_facts,
    regions,
    size_words,
    small_heat,
    standing_out,
    touched_cells,
    usual_heat,
)
from engines.template import TemplateDescriber, category_word


def heat(*boxes, shape=(240, 240)):
    """Map with (x, y, w, h, value) boxes."""
    out = np.zeros(shape, np.float32)
    for x, y, w, h, value in boxes:
        out[y : y + h, x : x + w] = value
    return out


def request(map_, **changes):
    values = {
        "part_id": "p1", "noun": "metal plate", "verdict": "NG", "score": 0.9, "threshold": 0.5,
        "map": map_, "area": Area(0, 0, map_.shape[1], map_.shape[0]),
    }  # fmt: skip
    return DescribeRequest(**values | changes)


def test_regions_are_boxes_in_original_pixels_strongest_first():
    map_ = heat((10, 20, 30, 5, 0.6), (100, 200, 10, 10, 0.9))
    found, count = regions(map_, 0.5, origin=(1000, 500), extent=(480, 240))
    assert count == 2
    assert [(r.x, r.y, r.w, r.h, r.area) for r in found] == [
        (1200, 700, 20, 10, 200),
        (1020, 520, 60, 5, 300),
    ]
    assert [round(r.peak, 3) for r in found] == [0.9, 0.6]


def test_regions_count_all_but_list_no_more_than_the_limit():
    map_ = heat(*[(x, y, 8, 8, 0.8) for x in range(0, 240, 16) for y in range(0, 240, 16)])
    found, count = regions(map_, 0.5, limit=64)
    assert (len(found), count) == (64, 225)


def test_a_not_a_number_is_never_a_region():
    map_ = heat((50, 50, 20, 20, 0.9))
    map_[:10] = np.nan
    found, count = regions(map_, half_peak_level(map_))
    assert count == 1 and found[0].y == 50


def test_boxes_stay_inside_the_inspected_region():
    map_ = heat((230, 230, 10, 10, 0.9))
    (found,), _ = regions(map_, 0.5, extent=(1001, 333))
    assert found.x + found.w <= 1001 and found.y + found.h <= 333


def test_single_pixels_are_not_findings_beside_a_region():
    _, count = regions(heat((3, 3, 1, 1, 0.7), (50, 50, 20, 20, 0.9)), 0.5)
    assert count == 1


def test_an_even_map_below_the_floor_has_no_region():
    assert regions(np.full((60, 60), 0.2, np.float32), half_peak_level(np.zeros((2, 2)), 0.3)) == (
        (),
        0,
    )


@pytest.mark.parametrize(
    ("x", "y", "name"),
    [(0.1, 0.1, "top left"), (0.5, 0.1, "top"), (0.9, 0.5, "right"), (0.5, 0.5, "center"),
     (1.0, 1.0, "bottom right"), (0.0, 0.99, "bottom left")],
)  # fmt: skip
def test_cells_of_the_three_by_three_grid(x, y, name):
    assert cell_of(x, y) == name


def test_a_region_over_most_of_the_part_is_everywhere():
    assert location_word(heat((0, 0, 240, 200, 1)) > 0) == "everywhere"


def test_a_line_across_two_cells_touches_both():
    assert touched_cells(heat((10, 20, 140, 4, 1)) > 0) == ("top left", "top")


@pytest.mark.parametrize(
    ("box", "shape"),
    [((20, 20, 100, 6), "line"), ((20, 20, 60, 25), "elongated"), ((20, 20, 8, 8), "spot"),
     ((20, 20, 60, 60), "patch")],
)  # fmt: skip
def test_shapes_and_extents(box, shape):
    length, word = extent_and_shape(heat((*box, 1)) > 0, Area(0, 0, 240, 240))
    assert word == shape
    assert length == pytest.approx(max(box[2:]), abs=1.5)


def test_a_disc_is_round():
    y, x = np.mgrid[:240, :240]
    assert (
        extent_and_shape((x - 120) ** 2 + (y - 120) ** 2 < 900, Area(0, 0, 240, 240))[1] == "round"
    )


def test_sizes_follow_the_frame_not_the_map():
    mask = heat((0, 0, 24, 4, 1)) > 0
    length, _ = extent_and_shape(mask, Area(0, 0, 2400, 240))
    assert length == pytest.approx(240, abs=15)
    assert size_words(length, 0.01)[1].endswith(" mm")
    assert size_words(34.4, None) == (34.0, "34 px")
    assert size_words(123.0, 0.01)[1] == "1.2 mm"


@pytest.mark.parametrize(
    ("bgr", "name"),
    [((0, 0, 0), "black"), ((60, 60, 60), "dark grey"), ((130, 130, 130), "grey"),
     ((200, 200, 200), "light grey"), ((250, 250, 250), "white"), ((0, 0, 230), "red"),
     ((0, 200, 0), "green"), ((230, 40, 0), "blue"), ((30, 60, 110), "brown"),
     ((0, 230, 230), "yellow")],
)  # fmt: skip
def test_colour_names(bgr, name):
    assert name_colour(np.array(bgr)) == name


def test_the_colour_is_that_of_the_defect_not_of_the_wider_heat():
    crop = np.full((120, 120, 3), 180, np.uint8)
    crop[50:60, 50:60] = 10
    assert colour_word(crop, heat((80, 80, 50, 50, 1)) > 0) == "black"


def test_confidence_grows_with_the_distance_from_the_threshold():
    assert [confidence_word(s, 0.5) for s in (0.52, 0.6, 0.9)] == ["low", "medium", "high"]
    assert confidence_word(float("nan"), 0.5) == "low"


def test_slimming_keeps_place_and_count():
    big = heat((1500, 100, 300, 40, 0.9), (50, 900, 100, 100, 0.7), shape=(1000, 2000))
    whole, small = request(big).facts(), slim(request(big)).facts()
    assert max(slim(request(big)).map.shape) == 240
    assert (small.location, small.count, small.cells) == (whole.location, 2, whole.cells)
    assert small.size == pytest.approx(whole.size, rel=0.1)


# --- template ----------------------------------------------------------------------------------


def test_the_template_says_what_the_map_says():
    said = TemplateDescriber().describe(
        request(
            heat((20, 20, 100, 6, 0.9), (200, 200, 10, 10, 0.6)), categories=("{} with a crack",)
        )
    )
    assert (said.count, said.location, said.shape) == (2, "top left", "line")
    assert said.category == "crack"
    assert said.sentence.startswith("This is a picture of a metal plate. There are two defects")
    assert "top left" in said.sentence


def test_without_a_noun_that_fits_nothing_is_claimed():
    facts = request(heat((20, 20, 100, 6, 0.9))).facts()
    assert category_word((), facts) == "anomaly"
    assert category_word(("crack", "dent"), facts) == "crack"
    assert category_word(("crack", "scratch"), facts) == "anomaly"


def test_a_part_without_a_region_gets_no_invented_place():
    said = TemplateDescriber().describe(request(np.zeros((60, 60), np.float32), level=0.5))
    assert said.count == 0
    assert "no single place" in said.sentence


# --- words against the map ---------------------------------------------------------------------


def described(**changes):
    asked = request(heat((20, 20, 100, 6, 0.9)))
    said = TemplateDescriber().describe(asked)
    return contradiction(said.model_copy(update=changes), asked.facts())


def test_words_that_agree_have_no_contradiction():
    assert described() is None
    assert described(sentence="A crack at the upper left, 101 px long.") is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"location": "bottom right"}, "bottom right"), ({"count": 3}, "3 regions"),
     ({"size_mm_or_px": "250 px"}, "250 px"), ({"size_mm_or_px": "100 mm"}, "100 mm"),
     ({"defective": False}, "not defective"),
     ({"sentence": "A crack in the lower right corner."}, "bottom right"),
     ({"sentence": "A crack, 500 px long."}, "500 px"),
     ({"sentence": "There is no visible defect."}, "no defect")],
)  # fmt: skip
def test_every_disagreement_is_named(changes, said):
    assert said in described(**changes)


def test_places_are_found_under_their_other_names():
    assert places_in("at the upper-left and in the middle") == ("top left", "center")
    assert places_in("the left bottom") == ("left", "bottom")


def test_facts_need_no_crop_and_take_the_counts_they_are_given():
    facts = part_facts(
        heat((0, 0, 9, 9, 1)), 0.5, Area(0, 0, 9, 9), defective=True, score=1, threshold=0.5
    )
    assert facts.colour == "grey"
    assert request(heat((0, 0, 9, 9, 1)), count=7).facts().count == 7


def test_the_place_is_where_the_map_stands_out_against_good_parts():
    heat = np.zeros((240, 240), np.float32)
    heat[224:, :16] = 0.9  # a corner that is warm on good parts too
    heat[20:40, 110:130] = 0.7
    usual = np.full((15, 15), 0.01, np.float32)
    usual[14, 0] = 0.5
    told = {"defective": True, "score": 0.9, "threshold": 0.5}
    area = Area(0, 0, 240, 240)
    assert part_facts(heat, 0.45, area, **told).location == "bottom left"
    assert part_facts(heat, 0.45, area, **told, usual=usual).location == "top"
    assert part_facts(heat, 0.45, area, **told, usual=usual).count == 2


def test_usual_heat_is_what_nine_of_ten_good_parts_stay_under():
    rng = np.random.default_rng(0)
    heats = [small_heat(rng.uniform(0, 1, (240, 240)).astype(np.float32)) for _ in range(20)]
    usual = usual_heat(heats)
    assert usual.shape == (15, 15)
    assert 0.8 < np.mean([(h <= usual).mean() for h in heats]) < 1
    even = np.ones((30, 30), np.float32)
    assert standing_out(even, np.zeros((15, 15), np.float32)) is even  # good parts all cold
