"""Each exported graph alone against PyTorch, on real ONNX Runtime, from a seeded nano model."""

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from engines.session import Session  # noqa: E402
from engines.text import tokenise  # noqa: E402
from export import compose  # noqa: E402
from export.frames import draw  # noqa: E402
from export.gate_frames import to_tile  # noqa: E402
from export.graph import OPSET, Graph, WeightStore  # noqa: E402
from export.model import SpgddGpt, TextConfig, VisionConfig, preset  # noqa: E402
from export.model.memory import match  # noqa: E402
from export.model.tddf import unit  # noqa: E402
from export.model.weights import load_weights, save_weights  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    """(folder, model, store); the stem is random too, so no package of weights is needed."""
    folder = tmp_path_factory.mktemp("nano")
    torch.manual_seed(0)
    save_weights(SpgddGpt(preset("nano")), folder / "weights.safetensors")
    model = load_weights(folder / "weights.safetensors")
    return folder, model, WeightStore(folder / "weights.safetensors")


@pytest.fixture(scope="module")
def tiles():
    return np.stack([to_tile(draw(i, defective=i > 0).image) for i in range(2)])


def session(folder, graph, name):
    path = folder / f"{name}.onnx"
    onnx.save(graph.model(name), path)
    onnx.checker.check_model(str(path), full_check=True)
    return Session(path, threads=1)


def close(got, expected, tol):
    assert np.abs(got - expected.numpy().reshape(got.shape)).max() <= tol


def grids(f_out, p, am):
    """(B,225,3) tensors as the head's inputs."""
    named = (("f_out", f_out), ("p", p), ("am", am))
    return {name: t.numpy().reshape(-1, 15, 15, 3) for name, t in named}


@pytest.fixture(scope="module")
def encoded(nano, tiles):
    with torch.no_grad():
        return nano[1].encode_image(nano[1].normalise(torch.from_numpy(tiles)))


def test_encoder(nano, tiles, encoded):
    folder, model, store = nano
    s = session(folder, compose.encoder(Graph(store), model.config), "encoder")
    for batch in (1, 2):
        out = s.run({"tiles": tiles[:batch]})
        close(out["cls"], encoded.cls[:batch], 2e-5)
        for name, tap in zip("abc", encoded.taps, strict=True):
            close(out[f"tap_{name}"], tap[:batch], 2e-5)


@pytest.mark.parametrize(
    ("branch", "local"),
    [("enhanced", 0), ("accumulated", 0), ("maskclip", 0), ("clip", 0), ("enhanced", 16)],
)
def test_every_branch_is_exported(tmp_path, branch, local, tiles):
    from dataclasses import replace

    torch.manual_seed(2)
    vision = VisionConfig(width=32, heads=2, layers=3, taps=(1, 2, 3), branch=branch)
    if local:
        vision = replace(vision, stem="efficientnet_lite0", local=local)
    text = TextConfig(width=16, heads=2, layers=1, rank=4)
    config = replace(preset("nano"), vision=vision, text=text, embed_dim=16)
    save_weights(SpgddGpt(config), tmp_path / "weights.safetensors")
    model = load_weights(tmp_path / "weights.safetensors")
    graph = compose.encoder(Graph(WeightStore(tmp_path / "weights.safetensors")), config)
    out = session(tmp_path, graph, "encoder").run({"tiles": tiles})
    with torch.no_grad():
        expected = model.encode_image(model.normalise(torch.from_numpy(tiles)))
    close(out["cls"], expected.cls, 1e-5)
    for name, tap in zip("abc", expected.taps, strict=True):
        close(out[f"tap_{name}"], tap, 1e-5)


@pytest.mark.parametrize("contexts", [0, 3])
def test_text(tmp_path, contexts):
    from dataclasses import replace

    torch.manual_seed(3)
    base = preset("nano")
    config = replace(base, text=replace(base.text, learned_contexts=contexts))
    save_weights(SpgddGpt(config), tmp_path / "weights.safetensors")
    model = load_weights(tmp_path / "weights.safetensors")
    graph = compose.text(Graph(WeightStore(tmp_path / "weights.safetensors")), config)
    ids = tokenise(["a photo of a tile.", "a blurry photo of a damaged magnetic tile."])
    if contexts:
        ids[0, 1:4] = 49408 + np.array([0, 1, 5])
    with torch.no_grad():
        expected = model.encode_text(torch.from_numpy(ids))
    close(session(tmp_path, graph, "text").run({"ids": ids})["text"], expected, 2e-5)


def test_tddf_head_and_prefix(nano, encoded):
    folder, model, store = nano
    torch.manual_seed(4)
    anchors = unit(torch.randn(2, 2, model.config.embed_dim))
    am = torch.rand(2, 225, 3)
    with torch.no_grad():
        score, maps, p, f_out = model.compose(encoded, anchors, am)
        prefix = model.prefix(unit(encoded.cls), anchors, f_out)
    feeds = {f"tap_{n}": t.numpy() for n, t in zip("abc", encoded.taps, strict=True)}
    tddf = session(folder, compose.focuser(Graph(store), model.config), "tddf")
    close(tddf.run({**feeds, "anchors": anchors.numpy()})["p"], p, 1e-5)
    cells = grids(f_out, p, am)
    rest = {"cls": encoded.cls.numpy(), "anchors": anchors.numpy()}
    head = session(folder, compose.adapter(Graph(store), model.config), "head")
    out = head.run({**cells, **rest})
    close(out["map"], maps, 1e-5)
    close(out["score"], score, 1e-5)
    words = session(folder, compose.words(Graph(store), model.config), "prefix")
    units = {"cls": unit(encoded.cls).numpy(), "anchors": anchors.numpy()}
    close(words.run({**units, "f_out": cells["f_out"]})["prefix"], prefix, 1e-5)


@pytest.mark.parametrize("length", [1.0, 0.3, 0.01])
@pytest.mark.parametrize("head", ["mean", "linear", "paper_literal", "mlp"])
def test_every_head_is_exported(tmp_path, head, length):
    from dataclasses import replace

    torch.manual_seed(6)
    save_weights(SpgddGpt(replace(preset("nano"), head=head)), tmp_path / "weights.safetensors")
    model = load_weights(tmp_path / "weights.safetensors")
    f_out, p, am = (torch.rand(1, 225, 3) for _ in range(3))
    with torch.no_grad():
        expected = model.head(f_out, p, am, torch.tensor([length]))
    graph = compose.adapter(Graph(WeightStore(tmp_path / "weights.safetensors")), model.config)
    feeds = grids(f_out, p, am)
    anchors = np.full((1, 2, 192), length / np.sqrt(192), np.float32)
    feeds |= {"cls": np.ones((1, 192), np.float32), "anchors": anchors}
    close(session(tmp_path, graph, "head").run(feeds)["map"], expected, 1e-5)


@pytest.mark.parametrize("flat", [False, True], ids=["loop", "flat"])
@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
def test_memory_in_any_size_and_group(nano, mode, flat):
    folder, model, store = nano
    torch.manual_seed(5)
    graph = compose.memory(Graph(store), model.config, mode, flat=flat)
    s = session(folder, graph, f"msspmm.{mode}.{flat}")
    taps = [torch.randn(3, 225, d) for d in model.config.tap_dims]
    feeds = {f"tap_{n}": t.numpy() for n, t in zip("abc", taps, strict=True)}
    group = torch.tensor([1, 0, 1])
    for count in (1, 2, 5, 9):
        memory = [unit(torch.randn(2, count, 225, d)) for d in model.config.tap_dims]
        expected, _ = match(tuple(taps), tuple(m[group] for m in memory), mode)
        bound = {f"memory_{n}": m.numpy() for n, m in zip("abc", memory, strict=True)}
        bound |= {"group": group.numpy(), "few_shot": np.array(True)}
        close(s.run({**feeds, **bound})["distances"], expected, 1e-5)
        bound["few_shot"] = np.array(False)
        assert (s.run({**feeds, **bound})["distances"] == 2).all()


@pytest.mark.parametrize("name", ["nano", "paper"])
@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
def test_distances_of_one_surface_are_those_of_float64(nano, tmp_path, mode, name):
    """Tokens of a real surface have cosines near 1, where 2-2cos of FP32 sums is off by 2e-6."""
    store, config = nano[2], preset(name)
    s = session(tmp_path, compose.memory(Graph(store), config, mode), "m")
    rng = np.random.default_rng(8)
    taps, memory, exact = [], [], []
    for d in config.tap_dims:
        surface, spread = rng.normal(size=d), rng.choice([0.03, 0.3, 2.0], (225, 1))
        q = surface + spread * rng.normal(size=(225, d))
        m = surface + spread * rng.normal(size=(3, 225, d))
        q, m = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, m))
        taps.append(q.astype(np.float32))
        memory.append(m.astype(np.float32))
        q, m = taps[-1].astype(float), memory[-1].astype(float)
        q, m = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, m))
        cos = np.einsum("pd,npd->np", q, m) if mode == "position" else (m @ q.T).max(1)
        exact.append(2 - 2 * cos)
    squared = np.stack(exact, -1)  # (3,225,3)
    best = squared.min(0) if mode == "bank" else squared[np.sqrt(squared).sum((1, 2)).argmin()]
    feeds = {f"tap_{n}": t[None] for n, t in zip("abc", taps, strict=True)}
    feeds |= {f"memory_{n}": m[None] for n, m in zip("abc", memory, strict=True)}
    feeds |= {"group": np.zeros(1, np.int64), "few_shot": np.array(True)}
    got = s.run(feeds)["distances"].reshape(225, 3).astype(float) ** 2
    assert np.abs(got - best).max() <= 1e-6


def test_detector_against_torch_on_full_size_frames(nano, tiles):
    folder, model, store = nano
    torch.manual_seed(1)
    anchors = unit(torch.randn(1, 2, model.config.embed_dim))
    frames = torch.from_numpy(tiles)
    memory = [t[:1][None] for t in model.detect(frames, anchors).tokens]
    for mode in ("position", "nearest", "bank"):
        s = session(folder, compose.detector(Graph(store), model.config, mode), f"d.{mode}")
        expected = model.detect(frames, anchors, memory, mode)
        feeds = {f"memory_{n}": m.numpy() for n, m in zip("abc", memory, strict=True)}
        feeds |= {"group": np.zeros(2, np.int64), "few_shot": np.array(True)}
        out = s.run({"tiles": tiles, "anchors": anchors.numpy(), **feeds})
        close(out["score"], expected.score, 1e-4)
        close(out["map"], expected.map, 1e-4)
        # one step of the snap to zero (sqrt(4e-6)/2): flat tokens lie on either side of it
        close(out["f_out"], expected.f_out, 1.1e-3)


@pytest.mark.slow
def test_paper_detector_against_torch_on_a_full_size_frame(tmp_path, tiles):
    torch.manual_seed(0)
    save_weights(SpgddGpt(preset("paper")), tmp_path / "weights.safetensors")
    model = load_weights(tmp_path / "weights.safetensors")
    store = WeightStore(tmp_path / "weights.safetensors")
    anchors = unit(torch.randn(1, 2, model.config.embed_dim))
    frames = torch.from_numpy(tiles)
    memory = [t[:1][None] for t in model.detect(frames, anchors).tokens]
    expected = model.detect(frames, anchors, memory, "nearest")
    s = session(tmp_path, compose.detector(Graph(store), model.config, "nearest"), "d")
    feeds = {f"memory_{n}": m.numpy() for n, m in zip("abc", memory, strict=True)}
    feeds |= {"group": np.zeros(2, np.int64), "few_shot": np.array(True)}
    out = s.run({"tiles": tiles, "anchors": anchors.numpy(), **feeds})
    close(out["score"], expected.score, 1e-4)
    close(out["map"], expected.map, 1e-4)
    for name, token in zip("abc", expected.tokens, strict=True):
        assert (out[f"tokens_{name}"] * token.numpy()).sum(-1).min() >= 0.99999


@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
def test_the_memory_is_walked_in_blocks_and_never_multiplied_whole(nano, mode):
    _, model, store = nano
    made = compose.detector(Graph(store), model.config, mode).model("d")
    loops = [n for n in made.graph.node if n.op_type == "Loop"]
    assert len(loops) == 1
    products = [n.name for n in made.graph.node if n.op_type == "MatMul"]
    assert not [n for n in products if n.startswith("memory")]
    body = loops[0].attribute[0].g
    assert sum(n.op_type == "MatMul" for n in body.node) == (0 if mode == "position" else 3)


def test_graphs_hold_no_weights_and_no_large_constants(nano):
    _, model, store = nano
    made = compose.detector(Graph(store), model.config, "nearest").model("d")
    assert made.opset_import[0].version == OPSET
    assert len(made.SerializeToString()) < 300_000
    external = [t for t in made.graph.initializer if t.data_location == 1]
    names = {t.name.removesuffix(".raw") for t in external}
    assert names <= set(store.tensors)
    assert len(external) > 100
