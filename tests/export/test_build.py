"""The build command: the shipped bundle again, nothing rebuilt, errors in a sentence."""

import json
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the reference model needs torch")

from safetensors.numpy import load_file  # noqa: E402

from engines.bundle import BUNDLES, load_bundle  # noqa: E402
from export.build_engines import main, parser  # noqa: E402

pytestmark = pytest.mark.torch
NANO = BUNDLES / "nano"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """nano built from the shipped weights with drawn gate frames and no INT8."""
    out = tmp_path_factory.mktemp("build") / "nano"
    assert main(["--preset", "nano", "--out", str(out), "--no-int8", "--data", "drawn"]) == 0
    return out


def test_the_shipped_weights_make_the_shipped_engines(built):
    mine, shipped = load_bundle(built).manifest, load_bundle("nano").manifest
    theirs = {e.file: e.sha256 for e in shipped.engines}
    for entry in mine.engines:
        assert entry.sha256 == theirs[entry.file], entry.file
    assert mine.prompts == shipped.prompts
    assert mine.preprocess == shipped.preprocess


def test_the_same_reference_answers_come_out(built):
    ours = load_file(built / "reference/outputs.safetensors")
    shipped = load_file(NANO / "reference/outputs.safetensors")
    for name, value in ours.items():
        assert np.abs(value - shipped[name]).max() <= 1e-3, name


def test_the_manifest_keeps_every_figure_of_the_gate(built):
    manifest = load_bundle(built).manifest
    assert manifest.gate["frames"] >= 32
    for entry in manifest.engines:
        assert entry.parity, entry.file
        assert entry.latency_ms > 0
    for entry in [e for e in manifest.engines if e.kind == "detector"]:
        assert entry.parity["score_max"] <= 1e-4
        assert entry.parity["map_max"] <= 1e-4
        assert entry.parity["flips"] == 0
        assert entry.default


def test_nothing_is_rebuilt_that_is_up_to_date(built, capsys):
    before = {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()}
    assert main(["--preset", "nano", "--out", str(built), "--no-int8", "--data", "drawn"]) == 0
    assert "up to date" in capsys.readouterr().err
    assert before == {p: p.stat().st_mtime_ns for p in built.rglob("*") if p.is_file()}
    assert list(built.parent.iterdir()) == [built]


@pytest.mark.slow
def test_a_damaged_bundle_is_rebuilt(built, tmp_path, capsys):
    out = shutil.copytree(built, tmp_path / "nano")
    (out / "text.onnx").write_bytes(b"")
    assert main(["--preset", "nano", "--out", str(out), "--no-int8", "--data", "drawn"]) == 0
    assert "up to date" not in capsys.readouterr().err
    load_bundle(out)


def test_weights_of_another_preset_are_refused(tmp_path, capsys):
    weights = str(NANO / "weights.safetensors")
    assert main(["--preset", "paper", "--out", str(tmp_path), "--weights", weights]) == 5
    assert "preset nano" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_reads_like_a_manual(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for word in ("What happens", "gate", "examples", "--checkpoint", "epoch", "--target", "sm89"):
        assert word.lower() in text.lower()
    assert parser().prog == "python -m export.build_engines"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_int8_twins_ship_only_with_figures_or_a_reason(tmp_path):
    out = tmp_path / "nano"
    assert main(["--preset", "nano", "--out", str(out), "--data", "drawn"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    files = {e["file"] for e in manifest["engines"]}
    refused = {r["file"]: r["reasons"] for r in manifest["rejected"]}
    for mode in ("position", "nearest", "bank"):
        for scheme in ("int8-dynamic", "int8-static"):
            name = f"detector.{mode}.{scheme}.onnx"
            assert (name in files) != (name in refused)
            assert (out / name).is_file() == (name in files)
            assert name in files or refused[name]
        assert sum(e["default"] for e in manifest["engines"] if e["mode"] == mode) == 1
