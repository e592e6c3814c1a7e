"""OpenCLIP checkpoints: strict, verified, and the same numbers as an independent forward."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from clipkit import NumpyClip, random_checkpoint  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from engines.errors import EngineError, UsageError  # noqa: E402
from engines.text import tokenise  # noqa: E402
from export.model import SpgddGpt, TextConfig, VisionConfig, preset  # noqa: E402
from export.model.checkpoint import _named_e31, load_openclip  # noqa: E402
from export.model.weights import load_own, load_weights, save_own, save_weights  # noqa: E402

pytestmark = pytest.mark.torch
SMALL = {"width": 64, "layers": 4, "embed": 32, "text_width": 48, "text_layers": 2}
PAPER = {"width": 896, "layers": 12, "embed": 640, "text_width": 640, "text_layers": 12}


def config(shape):
    base = preset("paper")
    if shape is PAPER:
        return base
    return replace(
        base,
        vision=VisionConfig(width=64, heads=2, layers=4, taps=(1, 3, 4)),
        text=TextConfig(width=48, heads=2, layers=2),
        embed_dim=32,
        llm_hidden=16,
    )


def written(tmp_path, state, name="ckpt"):
    """The state as `.pt` whose name carries the start of its sha256."""
    plain = tmp_path / "plain.pt"
    torch.save({k: torch.from_numpy(v) for k, v in state.items()}, plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    return plain.rename(tmp_path / f"{name}-{digest[:8]}.pt"), digest


@pytest.mark.parametrize(
    "shape", [SMALL, pytest.param(PAPER, marks=pytest.mark.slow)], ids=["small", "paper"]
)
def test_checkpoint_gives_what_an_independent_forward_gives(tmp_path, shape):
    rng = np.random.default_rng(5)
    state = random_checkpoint(rng, **shape)
    path, digest = written(tmp_path, state)
    cfg = config(shape)
    model = SpgddGpt(cfg).eval()
    assert load_openclip(model, str(path)) == digest
    oracle = NumpyClip(state, cfg.vision.heads, cfg.text.heads)
    pixels = rng.normal(size=(3, 240, 240)).astype(np.float32)
    cls, taps = oracle.image(pixels.astype(float), cfg.vision.layers, cfg.vision.taps)
    ids = tokenise(["a photo of a damaged magnetic tile."])
    with torch.no_grad():
        encoded = model.encode_image(torch.from_numpy(pixels)[None])
        text = model.encode_text(torch.from_numpy(ids))[0]
    for got, expected in (
        (encoded.cls[0], cls),
        (text, oracle.text(ids[0], cfg.text.layers)),
        *zip((t[0] for t in encoded.taps), taps, strict=True),
    ):
        error = np.linalg.norm(got.numpy() - expected) / np.linalg.norm(expected)
        assert error <= 1e-5


@pytest.fixture
def small(tmp_path):
    state = random_checkpoint(np.random.default_rng(1), **SMALL)
    return SpgddGpt(config(SMALL)), state, tmp_path


def test_a_safetensors_checkpoint_needs_a_sha256(small):
    model, state, folder = small
    path = folder / "open_clip.safetensors"
    save_file(state, path)
    with pytest.raises(EngineError, match="nothing vouches"):
        load_openclip(model, str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_openclip(model, str(path), digest) == digest
    with pytest.raises(EngineError, match="damaged or another file"):
        load_openclip(model, str(path), "0" * 64)


def test_a_name_that_lies_is_refused(small):
    model, state, folder = small
    path, _ = written(folder, state)
    lying = path.rename(folder / "vit_b_16_plus_240-laion400m_e32-699c4b84.pt")
    with pytest.raises(EngineError, match="not 699c4b84"):
        load_openclip(model, str(lying))


def test_epoch_31_is_refused_by_name_and_says_why(small):
    model, state, folder = small
    path, digest = written(folder, state, "vit_b_16_plus_240-laion400m_e31")
    for expected in (None, digest[:8], digest[:63]):
        with pytest.raises(EngineError, match="epoch 31") as error:
            load_openclip(model, str(path), expected)
        assert "laion400m_e32" in str(error.value)
    assert load_openclip(model, str(path), digest) == digest  # all 64 digits say more than a name


def test_a_folder_that_happens_to_hold_the_letters_of_an_epoch_is_none(small):
    """te31st was refused, whatever the sha256 said."""
    model, state, folder = small
    for name in ("te31st", "e31"):
        (folder / name).mkdir()
    path, digest = written(folder, state)
    for name in ("te31st/model", "e31/model", "some31/model", "ae310/model"):
        place = folder / f"{name}-{digest[:8]}.pt"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(path.read_bytes())
        assert load_openclip(model, str(place)) == digest


@pytest.mark.parametrize(
    ("ref", "named"),
    [
        ("hf://timm/vit_base_patch16_plus_clip_240.laion400m_e31/open_clip_model.safetensors", 1),
        ("hf://te31st/vit.laion400m_e32/open_clip_model.safetensors", 0),
        ("hf://e31/vit.laion400m_e32/open_clip_model.safetensors", 0),
        ("/data/e31/vit-laion400m_e32-699c4b84.pt", 0),
        ("vit-LAION400m-E31.safetensors", 1),
        ("core31.safetensors", 0),
        ("e310.safetensors", 0),
    ],
)
def test_epoch_31_is_a_word_in_the_name_of_file_or_repository(ref, named):
    assert _named_e31(ref) == bool(named)


@pytest.mark.parametrize("expected", ["5", "", "1234567", "0x123456", "g" * 64, "0" * 65])
def test_too_few_digits_vouch_for_nothing(small, expected):
    """One digit fits one file in sixteen."""
    model, state, folder = small
    path, _ = written(folder, state)
    with pytest.raises(UsageError, match="at least 8"):
        load_openclip(model, str(path), expected)


def test_loading_is_strict_and_names_the_key(small):
    model, state, folder = small
    state.pop("visual.ln_pre.bias")
    path, _ = written(folder, state)
    with pytest.raises(EngineError, match=r"visual\.ln_pre\.bias"):
        load_openclip(model, str(path))


def test_a_text_file_is_not_a_checkpoint(small):
    model, _, folder = small
    path = folder / "x.pt"
    path.write_text("hello")
    with pytest.raises(EngineError, match="is not a checkpoint"):
        load_openclip(model, str(path), unverified=True)
    with pytest.raises(EngineError, match="no checkpoint at"):
        load_openclip(model, str(folder / "y.pt"))
    with pytest.raises(EngineError, match="hf://owner/repository/file"):
        load_openclip(model, "hf://owner")


def test_distributed_wrappers_are_unwrapped(small):
    model, state, folder = small
    named = {f"module.{k}": torch.from_numpy(v) for k, v in state.items()}
    wrapped = {"epoch": 32, "state_dict": named}
    torch.save(wrapped, folder / "w.pt")
    load_openclip(model, str(folder / "w.pt"), unverified=True)


def test_own_parts_and_weights_survive_a_file(small):
    model, _, folder = small
    other = SpgddGpt(model.config)
    save_own(model, folder / "own.safetensors", "a test")
    from safetensors.torch import load_file

    load_own(other, load_file(folder / "own.safetensors"), "own")
    assert torch.equal(other.prefix.image.weight, model.prefix.image.weight)
    save_weights(model, folder / "w.safetensors", half=False)
    again = load_weights(folder / "w.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
