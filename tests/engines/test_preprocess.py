"""The one resize: golden pixels, tiles that cover, and a hash that notices every change."""

import cv2
import numpy as np
import pytest

from engines import preprocess as pp
from engines.preprocess import Box, resize, spec_hash, stitch, tile_boxes, to_tiles

RNG = np.random.default_rng(0)


def test_shrinking_averages_whole_areas():
    image = RNG.integers(0, 256, (480, 720, 3), dtype=np.uint8)
    mean = image.reshape(240, 2, 240, 3, 3).astype(float).mean((1, 3))
    assert np.abs(resize(image).astype(float) - mean).max() <= 0.5


def test_growing_is_bicubic_with_minus_three_quarters():
    """Keys' kernel, a = -0.75, edges repeated, at half-pixel centres."""
    row = RNG.integers(0, 256, 120).astype(np.uint8)
    image = np.repeat(np.repeat(row[None, :, None], 240, 0), 3, 2)
    at = (np.arange(240) + 0.5) / 2 - 0.5
    base = np.floor(at).astype(int)
    out = np.zeros(240)
    for tap in range(-1, 3):
        x = np.abs(at - base - tap)
        near = (1.25 * x - 2.25) * x * x + 1
        far = -0.75 * (x**3 - 5 * x * x + 8 * x - 4)
        out += np.where(x <= 1, near, far) * row[np.clip(base + tap, 0, 119)]
    assert np.abs(resize(image)[7, :, 0] - np.clip(out, 0, 255)).max() <= 1


def test_a_flat_frame_longer_than_high_shrinks_first_and_then_grows():
    image = RNG.integers(0, 256, (120, 480, 3), dtype=np.uint8)
    narrow = image.reshape(120, 240, 2, 3).astype(float).mean(2).round().astype(np.uint8)
    assert np.abs(resize(image).astype(int) - resize(narrow).astype(int)).max() <= 2


def test_an_image_of_the_model_size_is_untouched():
    image = RNG.integers(0, 256, (240, 240, 3), dtype=np.uint8)
    assert np.array_equal(resize(image), image)


def test_tiles_are_rgb():
    blue = np.zeros((300, 300, 3), np.uint8)
    blue[..., 0] = 255
    assert to_tiles(blue, [Box(0, 0, 300, 300)])[0, 0, 0].tolist() == [0, 0, 255]


def test_tiles_fill_the_given_buffer():
    out = np.zeros((1, 240, 240, 3), np.uint8)
    image = RNG.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    tiles = to_tiles(image, tile_boxes((300, 500), None, (1, 1)), out)
    assert tiles is out
    assert out.any()


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (1, 4), (3, 2)])
@pytest.mark.parametrize("region", [None, Box(11, 7, 333, 201)])
def test_tiles_cover_the_region_exactly_and_have_one_size(grid, region):
    boxes = tile_boxes((480, 640), region, grid, 0.1)
    r = region or Box(0, 0, 640, 480)
    cover = np.zeros((480, 640), int)
    for b in boxes:
        cover[b.y : b.y + b.h, b.x : b.x + b.w] += 1
    inside = cover[r.y : r.y + r.h, r.x : r.x + r.w]
    assert len(boxes) == grid[0] * grid[1]
    assert inside.min() >= 1
    assert cover.sum() == inside.sum()
    assert len({(b.w, b.h) for b in boxes}) == 1


@pytest.mark.parametrize("region", [Box(-1, 0, 5, 5), Box(0, 0, 641, 10), Box(0, 0, 0, 4)])
def test_a_region_outside_the_frame_is_refused(region):
    with pytest.raises(ValueError, match="leaves the 640x480"):
        tile_boxes((480, 640), region, (1, 1))


def test_stitch_takes_the_maximum_in_overlaps():
    boxes = tile_boxes((100, 200), None, (1, 2), 0.2)
    maps = np.stack([np.full((240, 240), v, np.float32) for v in (0.3, 0.7)])
    whole = stitch(maps, boxes, (100, 200))
    assert whole.shape == (100, 200)
    assert whole[:, : boxes[1].x].max() == np.float32(0.3)
    assert whole[:, boxes[1].x :].min() == np.float32(0.7)


@pytest.mark.parametrize(
    ("key", "value"),
    [("size", 224), ("shrink", "INTER_LINEAR"), ("order", "BGR"), ("mean", [0.5, 0.5, 0.5])],
)
def test_every_parameter_moves_the_hash(monkeypatch, key, value):
    before = spec_hash()
    monkeypatch.setitem(pp.SPEC, key, value)
    assert spec_hash() != before


def test_wrong_arrays_are_refused():
    for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match="resize wants"):
            resize(bad)


def test_the_same_frame_gives_the_same_pixels_from_png_and_memory():
    image = RNG.integers(0, 256, (333, 517, 3), dtype=np.uint8)
    again = cv2.imdecode(cv2.imencode(".png", image)[1], cv2.IMREAD_COLOR)
    assert np.array_equal(resize(image), resize(again))
