"""Taps, branches, text pooling and parameter counts of the two presets."""

import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from export.model import ModelConfig, SpgddGpt, TextConfig, VisionConfig, preset  # noqa: E402

pytestmark = pytest.mark.torch


def small(branch="enhanced", taps=(1, 2, 3)):
    torch.manual_seed(1)
    return SpgddGpt(
        ModelConfig(
            name="nano",
            vision=VisionConfig(width=16, heads=2, layers=4, taps=taps, branch=branch),
            text=TextConfig(width=8, heads=2, layers=2, rank=4),
            embed_dim=8,
            llm_hidden=12,
        )
    ).eval()


PIXELS = torch.randn(1, 3, 240, 240, generator=torch.Generator().manual_seed(0))


def second_tap(change, **model):
    """F_b before and after `change(model)`."""
    m = small(**model)
    with torch.no_grad():
        before = m.encode_image(PIXELS).taps[1]
        change(m.clip.visual.transformer.resblocks)
        return before, m.encode_image(PIXELS).taps[1]


def noise(tensor):
    tensor.data += torch.randn_like(tensor)


def test_later_blocks_do_not_touch_a_tap():
    before, after = second_tap(lambda blocks: noise(blocks[2].attn.in_proj_weight))
    assert torch.equal(before, after)


@pytest.mark.parametrize(("rows", "changes"), [(slice(0, 32), False), (slice(32, 48), True)])
def test_only_the_value_weights_of_its_own_block_move_a_tap(rows, changes):
    before, after = second_tap(lambda blocks: noise(blocks[1].attn.in_proj_weight[rows]))
    assert torch.allclose(before, after) is not changes


def test_the_branches_differ_and_agree_on_the_image_feature():
    outs = {b: small(b) for b in ("enhanced", "accumulated", "maskclip", "clip")}
    encoded = {b: m.encode_image(PIXELS) for b, m in outs.items()}
    for name, other in encoded.items():
        assert torch.allclose(other.cls, encoded["enhanced"].cls)
        same = torch.allclose(other.taps[0], encoded["enhanced"].taps[0])
        assert same == (name == "enhanced")


def test_taps_are_copies():
    taps = small().encode_image(PIXELS).taps
    assert len({t.data_ptr() for t in taps}) == 3


def test_text_pools_at_the_first_end_and_ignores_what_follows():
    m = small()
    ids = torch.tensor([[49406, 320, 1125, 49407, 0, 0]])
    longer = torch.tensor([[49406, 320, 1125, 49407, 7, 49407]])
    assert torch.allclose(m.encode_text(ids), m.encode_text(longer), atol=1e-6)
    assert torch.allclose(m.encode_text(ids), m.encode_text(ids[:, :4]), atol=1e-6)


def test_parameter_counts():
    with torch.device("meta"):
        paper = SpgddGpt(preset("paper")).clip.visual
    assert sum(p.numel() for p in paper.parameters()) == 117_213_824
    nano = SpgddGpt(preset("nano"))
    vision = sum(p.numel() for p in nano.clip.visual.parameters())
    text = sum(p.numel() for p in nano.clip.parameters()) - vision
    assert vision <= 6_000_000
    assert text <= 5_000_000


def test_config_survives_the_weights_file():
    config = preset("nano")
    assert ModelConfig.from_json(config.to_json()) == config
