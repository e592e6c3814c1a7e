"""Numbers worked out by hand, against the PyTorch model."""

import math

import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from export.model import SpgddGpt  # noqa: E402
from export.model.adapter import Score, upsample  # noqa: E402
from export.model.memory import match  # noqa: E402
from export.model.tddf import delta_d, tddf_loss, tddf_loss_literal  # noqa: E402
from export.model.transformer import Attention, Block  # noqa: E402

pytestmark = pytest.mark.torch


def close(got, expected, tol=2e-6):
    assert torch.allclose(torch.as_tensor(got).double(), torch.tensor(expected).double(), atol=tol)


def test_vv_core_of_three_tokens():
    attention = Attention(2, 1)
    with torch.no_grad():
        attention.out_proj.weight.copy_(torch.eye(2))
        attention.out_proj.bias.zero_()
    v = torch.tensor([[[[1.0, 0], [0, 1], [1, 1]]]])
    close(attention.vv(v)[0], [[0.802224, 0.598888], [0.598888, 0.802224], [0.751745, 0.751745]])


def test_vv_branch_equals_multihead_attention_with_values_as_queries_and_keys():
    torch.manual_seed(0)
    block = Block(12, 3).double()
    oracle = torch.nn.MultiheadAttention(12, 3, batch_first=True).double()
    with torch.no_grad():
        block.attn.in_proj_bias.normal_()
        block.attn.out_proj.bias.normal_()
        oracle.in_proj_weight.copy_(block.attn.in_proj_weight[24:].repeat(3, 1))
        oracle.in_proj_bias.copy_(block.attn.in_proj_bias[24:].repeat(3))
        oracle.out_proj.load_state_dict(block.attn.out_proj.state_dict())
        x = torch.randn(2, 7, 12, dtype=torch.float64)
        y = block.ln_1(x)
        expected, _ = oracle(y, y, y)
        assert (block.attn.vv(block(x)[1]) - expected).abs().max() < 1e-13


Z, NORMAL, ABNORMAL = (1.0, 0, 0), (0.6, 0.8, 0), (0.8, 0.6, 0)


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_tddf_distance_difference_ignores_length(length):
    anchors = torch.tensor([NORMAL, ABNORMAL])
    close(delta_d(torch.tensor(Z) * length, anchors), 0.261972)
    close(delta_d(torch.tensor(Z), anchors.flip(0)), -0.261972)


def test_tddf_losses_signed_and_as_printed():
    delta = torch.tensor([0.261972])
    close(tddf_loss_literal(delta), 0.261972)
    close(tddf_loss(delta, torch.tensor([True])), 0.0)
    close(tddf_loss(delta, torch.tensor([False])), 0.261972)


def test_clip_like_cosines_give_a_tiny_difference():
    anchors = torch.tensor([[0.20, math.sqrt(1 - 0.04)], [0.22, math.sqrt(1 - 0.0484)]])
    delta = delta_d(torch.tensor([1.0, 0.0]), anchors)
    close(delta, 0.015911)
    close(torch.sigmoid(100 * delta), 0.830773, 2e-5)


QUERY = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [-1, 0]]])
M0 = torch.tensor([[0.0, 1], [1, 0], [1, 0], [0, 1]])
M1 = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])


def one_tap(mode, *references):
    """Distances of tap 0; the other two taps repeat it."""
    memory = torch.stack(references)[None]
    best, index = match((QUERY,) * 3, (memory,) * 3, mode)
    return best[0, :, 0], int(index[0])


def test_position_takes_the_second_reference():
    best, index = one_tap("position", M0, M1)
    assert index == 1
    close(best, [0, 0, 1.414214, 1.414214])


def test_nearest_ties_go_to_the_lowest_index():
    best, index = one_tap("nearest", M0, M1)
    assert index == 0
    close(best, [0, 0, 0, 1.414214])


@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
def test_a_query_that_is_in_memory_is_at_distance_zero(mode):
    torch.manual_seed(3)
    query = torch.randn(2, 225, 16)
    memory = torch.stack([torch.randn(2, 225, 16), query], 1)
    best, index = match((query,) * 3, (memory,) * 3, mode)
    assert not best.any()
    assert mode == "bank" or index.tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
@pytest.mark.parametrize("block", [1, 2, 3, 8])
def test_memory_order_and_block_size_do_not_matter(mode, block):
    torch.manual_seed(4)
    query, memory = torch.randn(1, 225, 8), torch.randn(1, 5, 225, 8)
    whole, _ = match((query,) * 3, (memory,) * 3, mode, block=100)
    mixed, _ = match((query,) * 3, (memory[:, torch.randperm(5)],) * 3, mode, block=block)
    assert torch.allclose(whole, mixed, atol=1e-6)


def test_a_shift_by_one_patch_breaks_position_but_not_nearest():
    torch.manual_seed(5)
    query = torch.randn(1, 225, 8)
    shifted = query.roll(1, 1)[:, None]
    assert not match((query,) * 3, (shifted,) * 3, "nearest")[0].any()
    assert match((query,) * 3, (shifted,) * 3, "position")[0].mean() > 1


def test_an_empty_memory_is_zero_shot():
    best, index = match((QUERY,) * 3, (torch.zeros(1, 0, 4, 2),) * 3, "nearest")
    assert (best == 2).all()
    assert int(index) == -1


def test_score_is_the_harmonic_mean_and_zero_kills_it():
    score = Score()
    close(score(torch.tensor([0.6]), torch.tensor([0.9])), [0.72])
    close(score(torch.tensor([0.0, 0.6]), torch.tensor([0.9, 0.0])), [0.0, 0.0])


def test_one_hot_patch_upsampled():
    grid = torch.zeros(1, 1, 15, 15)
    grid[0, 0, 7, 7] = 1
    close(upsample(grid).max(), 0.9384766, 1e-6)


def test_bilinear_row():
    row = torch.nn.functional.interpolate(
        torch.tensor([[[[0.0, 1, 2]]]]), size=(1, 6), mode="bilinear", align_corners=False
    )
    close(row[0, 0, 0], [0, 0.25, 0.75, 1.25, 1.75, 2])


@pytest.mark.parametrize(
    "grey,expected",
    [(0, [-1.792263, -1.752097, -1.480220]), (255, [1.930336, 2.074884, 2.145897])],
)
def test_black_and_white_pixels_as_the_tower_sees_them(grey, expected):
    tiles = torch.full((1, 240, 240, 3), grey, dtype=torch.uint8)
    pixels = SpgddGpt.create("nano").normalise(tiles)
    assert pixels.shape == (1, 3, 240, 240)
    for channel, value in enumerate(expected):
        close(pixels[0, channel], value)
