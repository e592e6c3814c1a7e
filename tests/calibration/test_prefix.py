"""Stage (d): the frozen model in torch is the one that speaks, and only the prefix learns."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")

from ggufkit import tiny_llama  # noqa: E402

from calibration.prefix_llama import FrozenLlama, rotate  # noqa: E402
from engines.gguf_model import LlamaModel, Span  # noqa: E402
from export.gguf import make_gguf  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tiny_llama(tmp_path_factory.mktemp("llama"))
    return make_gguf(str(folder), folder.parent / "out", say=lambda text: None).path


@pytest.fixture(scope="module")
def frozen(path):
    return FrozenLlama(path)


IDS = [1, *np.random.default_rng(3).integers(3, 500, 40).tolist()]


def test_its_logits_are_those_of_the_model_that_speaks(path, frozen):
    spoken = LlamaModel(path, n_ctx=128, sequences=1)
    expected = spoken.score(IDS)
    spoken.close()
    with torch.no_grad():
        found = frozen.logits(frozen.hidden(frozen.embed(IDS)[None], None))[0].numpy()
    assert np.abs(found - expected).max() < 1e-2


def test_a_kept_prompt_changes_nothing(frozen):
    with torch.no_grad():
        whole = frozen.hidden(frozen.embed(IDS)[None], None)[0, 15:]
        after = frozen.hidden(frozen.embed(IDS[15:])[None], frozen.keep([IDS[:15]]))[0]
    assert torch.allclose(whole, after, atol=1e-4)


def test_rows_of_different_lengths_each_go_on_after_their_own_context(frozen):
    shared = frozen.keep([IDS[:9]])
    rows, more = [IDS[9:20], IDS[9:14]], frozen.embed(IDS[20:30])[None].expand(2, -1, -1)
    with torch.no_grad():
        beside = frozen.hidden(more, frozen.keep(rows, shared))
        for i, row in enumerate(rows):
            alone = frozen.hidden(frozen.embed([*IDS[:9], *row, *IDS[20:30]])[None], None)[0, -10:]
            assert torch.allclose(beside[i], alone, atol=1e-4)


def test_padding_at_the_end_changes_nothing_before_it(frozen):
    rows = frozen.embed(IDS)[None]
    padded = torch.cat([rows, torch.zeros(1, 7, rows.shape[2])], 1)
    with torch.no_grad():
        assert torch.allclose(
            frozen.hidden(padded, None)[:, : len(IDS)], frozen.hidden(rows, None), atol=1e-5
        )


def test_gradients_reach_the_embeddings_and_nothing_else(frozen):
    rows = frozen.embed(IDS)[None].clone().requires_grad_()
    frozen.logits(frozen.hidden(rows, None)).logsumexp(-1).mean().backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0
    assert not any(w.requires_grad for w in frozen._w.values())


def test_embeddings_that_torch_makes_are_what_llama_cpp_continues(path, frozen):
    spoken = LlamaModel(path, n_ctx=128, sequences=1)
    vectors = torch.randn(21, 64, generator=torch.Generator().manual_seed(1)) * 0.1
    (logits,) = spoken.decode([Span(0, 0, embeddings=vectors.numpy())])
    spoken.close()
    with torch.no_grad():
        expected = frozen.logits(frozen.hidden(vectors[None], None))[0, -1].numpy()
    assert np.abs(logits - expected).max() < 1e-2


def test_rotation_keeps_lengths_and_is_nothing_at_position_zero():
    x = torch.randn(1, 2, 3, 8)
    angles = torch.tensor([[0.0] * 4, [0.5] * 4, [2.0] * 4])
    turned = rotate(x, angles)
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-6)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
