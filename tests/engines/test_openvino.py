"""OpenVINO behind the session interface: the same answers, the same refusals."""

import subprocess
import sys

import numpy as np
import pytest

from engines.bundle import load_bundle
from engines.detector import Detector, Memory
from engines.errors import EngineError
from engines.openvino_session import OpenVinoSession, openvino_info
from engines.selftest import self_test

pytest.importorskip("openvino", reason="extra 'openvino' is not installed")
OUTPUTS = ("score", "map", "p", "distances", "cls", "f_out")


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("nano")


def pair(bundle, mode):
    return [
        Detector.open(bundle, mode, runtime=r, threads=1, precision="fp32")
        for r in ("openvino", "ort-cpu")
    ]


def test_it_is_offered_with_its_version_and_precisions():
    info = openvino_info()
    assert info.available
    assert info.reason.startswith("openvino 20")
    assert {"fp32", "int8"} <= set(info.precisions)


@pytest.mark.parametrize("mode", ["position", "nearest", "bank"])
def test_answers_are_those_of_onnx_runtime(bundle, mode):
    rng = np.random.default_rng(5)
    tiles = rng.integers(0, 256, (3, 240, 240, 3), np.uint8)
    embed = bundle.manifest.embed_dim
    anchors = rng.standard_normal((1, 2, embed)).astype(np.float32)
    anchors /= np.linalg.norm(anchors, axis=-1, keepdims=True)
    answers = []
    for detector in pair(bundle, mode):
        detector.bind(None, anchors)
        first = detector.run(tiles[:2], np.zeros(2, np.int64))
        # The tokens of one runtime are the memory of the other, so that both see the same.
        taps = answers[0][0].tokens if answers else first.tokens
        detector.bind(Memory(tuple(t[None].copy() for t in taps)), anchors)
        answers.append((first, detector.run(tiles[2:])))
    for ours, theirs in zip(*answers, strict=True):
        for name in OUTPUTS:  # the gate's 1e-4: a square root near 0 magnifies rounding
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-4)
        for a, b in zip(ours.tokens, theirs.tokens, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_boot_self_test_passes(bundle):
    detector = Detector.open(bundle, "bank", runtime="openvino", threads=1, precision="fp32")
    report = self_test(detector)
    assert (report.runtime, report.max_error <= report.tolerance) == ("openvino", True)


def test_an_answer_stays_when_the_next_tile_is_run(bundle):
    detector = Detector.open(bundle, "bank", runtime="openvino", threads=1, precision="fp32")
    embed = bundle.manifest.embed_dim
    detector.bind(None, np.full((1, 2, embed), embed**-0.5, np.float32))
    first = detector.run(np.zeros((1, 240, 240, 3), np.uint8))
    kept = first.map.copy(), first.tokens[0].copy()
    detector.run(np.full((1, 240, 240, 3), 200, np.uint8))
    assert np.array_equal(first.map, kept[0])
    assert np.array_equal(first.tokens[0], kept[1])


def test_read_only_and_strided_inputs_are_taken(bundle):
    session = OpenVinoSession(bundle.file("text.onnx"), threads=1)
    ids = np.zeros((2, 154), np.int64)[:, ::2]
    ids[:, 0] = 49407
    ids.flags.writeable = False
    assert np.isfinite(session.run({"ids": ids})["text"]).all()


def test_a_damaged_file_is_one_clear_sentence(tmp_path):
    broken = tmp_path / "engine.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"engine\.onnx is not an engine OpenVINO can load"):
        OpenVinoSession(broken, threads=1)


def test_a_wrong_shape_is_refused(bundle):
    session = OpenVinoSession(bundle.file("encoder.onnx"), threads=1)
    with pytest.raises(EngineError, match="could not run"):
        session.run({"tiles": np.zeros((1, 100, 240, 3), np.uint8)})


def test_importing_it_tells_nobody_and_forks_nothing():
    code = (
        "import sys, time; seen = []; "
        "watched = {'socket.getaddrinfo', 'socket.connect', 'os.fork'}\n"
        "sys.addaudithook(lambda name, _: seen.append(name) if name in watched else None)\n"
        "from engines.openvino_session import openvino_info\n"
        "assert openvino_info().available; time.sleep(0.5)\n"
        "assert not seen and 'openvino_telemetry.backend' not in sys.modules, seen\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
