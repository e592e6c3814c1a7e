"""Every single part of a bundle is held against PyTorch, and one that is bent stops the build."""

import contextlib
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from onnx import helper, numpy_helper  # noqa: E402

from engines.bundle import BUNDLES, sha256  # noqa: E402
from engines.errors import EngineError  # noqa: E402
from engines.text import TextEncoder  # noqa: E402
from export import compose, gate_parts, gate_run  # noqa: E402
from export.bundle_writer import Draft, entry_of, write_engine, write_prompts  # noqa: E402
from export.gate_frames import drawn_sets  # noqa: E402
from export.gate_parts import CHECKS, PARTS, Bench, check_parts, torch_anchors  # noqa: E402
from export.graph import Graph, WeightStore  # noqa: E402
from export.model.memory import MODES  # noqa: E402
from export.model.weights import load_weights  # noqa: E402
from export.progress import Progress  # noqa: E402

pytestmark = pytest.mark.torch
FILES = ("encoder", "text", "tddf", "head", "prefix", *(f"msspmm.{m}" for m in MODES))


@pytest.fixture(scope="module")
def model():
    return load_weights(BUNDLES / "nano" / "weights.safetensors")


@pytest.fixture(scope="module")
def sets():
    return drawn_sets()


@pytest.fixture(scope="module")
def parts(tmp_path_factory, model):
    """A draft of the shipped weights with all single parts and no detector."""
    out = tmp_path_factory.mktemp("parts")
    shutil.copytree(BUNDLES / "nano" / "reference", out / "reference")
    shutil.copy(BUNDLES / "nano" / "weights.safetensors", out)
    write_prompts(out)
    store = WeightStore(out / "weights.safetensors")
    draft = Draft(out, model.config, {}, "a test")
    for kind, make in compose.PARTS.items():
        add(draft, make(Graph(store), model.config), f"{kind}.onnx", kind=kind)
    for mode in MODES:
        graph = compose.memory(Graph(store), model.config, mode)
        add(draft, graph, f"msspmm.{mode}.onnx", kind="msspmm", mode=mode)
    return draft


def add(draft, graph, name, **fields):
    write_engine(graph.model(name), draft.out / name)
    draft.engines.append(entry_of(graph, draft.out / name, **fields))


@pytest.fixture(scope="module")
def bench(model, sets):
    return Bench.of(model, sets, torch_anchors(model))


@pytest.fixture(autouse=True)
def once(monkeypatch):
    """No latency is asked about here."""
    monkeypatch.setattr(gate_parts, "ROUNDS", 1)


def test_every_kind_of_part_has_a_check_and_reasons():
    kinds = {*compose.PARTS, "msspmm"}
    assert set(CHECKS) == set(PARTS) == kinds
    assert all(len(reason) > 10 for limits in PARTS.values() for _, reason in limits.values())


def test_every_part_gets_its_figures(parts, bench):
    checked = check_parts(parts, bench, Progress(99))
    assert [e.file for e in checked] == [f"{name}.onnx" for name in FILES]
    for entry in checked:
        assert set(entry.parity) == {"frames", *PARTS[entry.kind]}
        assert entry.parity["frames"] == 6
        assert entry.latency_ms > 0
        print(entry.file, entry.parity, entry.latency_ms)


def bent(path, factor, output=0):
    """The graph of `path` with one output multiplied by `factor`."""
    made = onnx.load(path, load_external_data=False)
    name = made.graph.output[output].name
    for node in made.graph.node:
        if name in node.output:
            node.output[0] = "straight"
    made.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    made.graph.node.append(helper.make_node("Mul", ["straight", "factor"], [name], name="bend"))
    path.write_bytes(made.SerializeToString())


@contextlib.contextmanager
def one_bent(parts, name, factor, output=0):
    """The draft with this one part only, one of its outputs multiplied by `factor`."""
    path = parts.out / f"{name}.onnx"
    whole = path.read_bytes()
    try:
        bent(path, factor, output)
        yield replace(parts, engines=[e for e in parts.engines if e.file == path.name])
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("factor", [1.001, np.nan])
@pytest.mark.parametrize("name", FILES)
def test_a_part_that_is_bent_refuses_the_build_by_name(parts, bench, name, factor):
    whole = sha256(parts.out / "text.onnx")
    told = f"{name}.onnx alone fails the gate"
    with one_bent(parts, name, factor) as draft, pytest.raises(EngineError, match=told) as error:
        check_parts(draft, bench, Progress(99))
    assert "limit" in str(error.value)
    assert sha256(parts.out / "text.onnx") == whole


@pytest.mark.parametrize(("name", "output"), [("encoder", 0), ("encoder", 2), ("head", 1)])
def test_every_output_is_looked_at(parts, bench, name, output):
    told = f"{name}.onnx alone fails"
    with one_bent(parts, name, 1.001, output) as draft, pytest.raises(EngineError, match=told):
        check_parts(draft, bench, Progress(99))


def test_anchors_of_the_torch_side_are_torchs_own(parts, model):
    """Both sides of the gate had text.onnx's, so an error of the text tower showed nowhere."""
    own = torch_anchors(model, "tile")
    encoder = TextEncoder.open(parts.bundle())
    assert np.abs(own - encoder.anchors("tile")).max() < 1e-5
    assert np.allclose(np.linalg.norm(own, axis=-1), 1, atol=1e-6)


def test_the_gate_gives_each_side_its_own_anchors(parts, model, sets, bench, monkeypatch):
    given = []

    def gate_mode(draft, mode, sides, sets, progress):
        given.append((sides[0].anchors, sides[1]))
        return []

    monkeypatch.setattr(gate_run, "_gate_mode", gate_mode)
    monkeypatch.setattr(gate_run.Bench, "of", staticmethod(lambda *_: bench))
    monkeypatch.setattr(gate_run, "torch_anchors", lambda model: np.full((2, 192), 7, np.float32))
    before = list(parts.engines)
    gate_run.run_gate(parts, model, sets, Progress(99))
    kept, parts.engines = parts.engines, before
    assert len(given) == 3
    assert (given[0][0] == 7).all()
    assert (given[0][1] != 7).all()
    assert all(e.parity and e.latency_ms for e in kept)
    assert all(sha256(parts.out / e.file) == e.sha256 for e in kept)
