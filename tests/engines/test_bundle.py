"""A bundle that was changed, built for other pixels, or is none, is refused in one sentence."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from engines import preprocess as pp
from engines.bundle import BUNDLES, Bundle, load_bundle
from engines.detector import Detector
from engines.errors import EngineError
from engines.selftest import open_verified, self_test

NANO = BUNDLES / "nano"


@pytest.fixture
def copy(tmp_path):
    """A private copy of the shipped bundle."""
    return shutil.copytree(NANO, tmp_path / "bundle")


def files():
    return sorted(json.loads((NANO / "manifest.json").read_text())["files"])


def test_the_shipped_bundle_loads_and_names_what_its_weights_are():
    bundle = load_bundle("nano")
    assert bundle.manifest.preset == "nano"
    assert len(bundle.manifest.trained) > 10
    assert sum((NANO / f).stat().st_size for f in files()) <= 40 * 2**20


@pytest.mark.parametrize("name", files())
def test_one_flipped_byte_is_named(copy, name):
    path = copy / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EngineError, match=f"{name} was changed"):
        load_bundle(copy)


def test_a_missing_file_is_named(copy):
    (copy / "prompts.json").unlink()
    with pytest.raises(EngineError, match=r"prompts\.json is missing"):
        load_bundle(copy)


def test_a_flipped_byte_in_the_manifest_is_refused(copy):
    manifest = copy / "manifest.json"
    body = json.loads(manifest.read_text())
    first = next(iter(body["files"]))
    body["files"][first] = "0" * 64
    manifest.write_text(json.dumps(body))
    with pytest.raises(EngineError, match=r"manifest disagrees|was changed"):
        load_bundle(copy)


def test_any_flipped_bit_of_the_manifest_is_refused(copy):
    manifest = copy / "manifest.json"
    raw = manifest.read_bytes()
    rng = np.random.default_rng(5)
    for place in rng.integers(0, len(raw), 60):
        changed = bytearray(raw)
        changed[place] ^= 1 << int(rng.integers(8))
        manifest.write_bytes(changed)
        with pytest.raises(EngineError):
            load_bundle(copy)
    manifest.write_bytes(raw)
    load_bundle(copy)


def test_an_engine_with_other_weights_is_another_engine():
    bundle = load_bundle("nano")
    entry = bundle.engines("detector", "bank")[0]
    files = {**bundle.manifest.files, "weights.safetensors": "0" * 64}
    other = Bundle(bundle.path, bundle.manifest.model_copy(update={"files": files}), "x")
    assert other.identity(entry) != bundle.identity(entry)
    words = {**bundle.manifest.files, "MODEL_CARD.md": "0" * 64}
    same = Bundle(bundle.path, bundle.manifest.model_copy(update={"files": words}), "x")
    assert same.identity(entry) == bundle.identity(entry)


@pytest.mark.parametrize(
    ("output", "value"), [("score", np.nan), ("p", np.inf), ("map", 0.0), ("f_out", np.nan)]
)
def test_a_wrong_or_broken_output_fails_the_self_test(monkeypatch, output, value):
    true = Detector.run

    def broken(self, tiles, group=None):
        answer = true(self, tiles, group)
        return replace(answer, **{output: np.full_like(getattr(answer, output), value)})

    monkeypatch.setattr(Detector, "run", broken)
    detector = Detector.open(load_bundle("nano"), "bank", "ort-cpu")
    with pytest.raises(EngineError, match=f"-shot {output} differs"):
        self_test(detector)


def test_an_unknown_key_in_the_manifest_is_named(copy):
    manifest = copy / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "surprise": 1}))
    with pytest.raises(EngineError, match="surprise"):
        load_bundle(copy)


OTHER = {
    "version": 2, "size": 224, "fit": "letterbox", "shrink": "INTER_LINEAR", "grow": "INTER_LINEAR",
    "mixed": "at once", "order": "BGR", "scale": 1, "mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0],
}  # fmt: skip


@pytest.mark.parametrize("key", sorted(pp.SPEC))
def test_other_pixels_are_refused_by_the_spec(monkeypatch, key):
    monkeypatch.setitem(pp.SPEC, key, OTHER[key])
    with pytest.raises(EngineError, match="built for other pixels") as error:
        load_bundle("nano")
    assert f"{key} is {load_spec()[key]} there and {OTHER[key]} here" in str(error.value)


def load_spec():
    return json.loads((NANO / "manifest.json").read_text())["preprocess_spec"]


def test_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(EngineError, match=r"python -m export\.build_engines"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
def test_every_shipped_detector_passes_its_self_test(mode):
    bundle = load_bundle("nano")
    for entry in bundle.engines("detector", mode):
        report = self_test(Detector(bundle, entry, "ort-cpu", 1))
        assert report.max_error <= report.tolerance


def test_swapped_channels_fail_the_self_test(monkeypatch):
    """Even code that forgot to tell the spec is caught by the pictures."""

    def swapped(frame, boxes):
        return pp.to_tiles(frame[..., ::-1].copy(), boxes)

    monkeypatch.setattr("engines.selftest.to_tiles", swapped)
    with pytest.raises(EngineError, match="self-test of detector"):
        open_verified(load_bundle("nano"), "nearest")


def test_another_interpolation_fails_the_self_test(monkeypatch):
    def nearest(frame, boxes):
        small = cv2.resize(frame, (240, 240), interpolation=cv2.INTER_NEAREST)
        return np.ascontiguousarray(small[None, ..., ::-1])

    monkeypatch.setattr("engines.selftest.to_tiles", nearest)
    with pytest.raises(EngineError, match="self-test of detector"):
        self_test(Detector.open(load_bundle("nano"), "nearest", precision="fp32"))


def test_an_int8_engine_that_fails_falls_back_and_says_so(monkeypatch):
    bundle = load_bundle("nano")
    mode = next(
        (e.mode for e in bundle.engines("detector") if e.default and e.precision != "fp32"), None
    )
    if mode is None:
        pytest.skip("this bundle ships no INT8 default")
    real = self_test

    def failing(detector):
        if detector.precision != "fp32":
            raise EngineError("saturated")
        return real(detector)

    monkeypatch.setattr("engines.selftest.self_test", failing)
    detector, report = open_verified(bundle, mode, "ort-cpu")
    assert detector.precision == "fp32"
    assert "saturated" in report.note
