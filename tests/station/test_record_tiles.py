"""Real magnetic tiles: a recorded run is verified, and drift of the light is seen in time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import uikit

from calibration.enroll import RecipeArgs, enroll, open_recipe
from engines.bundle import load_bundle
from engines.detector import Detector
from engines.errors import EngineError
from station.drift import DriftMonitor
from station.inspection import Product, infer, outcome, prepare
from station.parts import PartRecord
from station.schema import Verdict, body
from station.sources.base import Frame

ROOT = Path(__file__).parents[2]
TILES = ROOT.parent / "shared" / "data" / "mt"


def bundle_missing():
    try:
        load_bundle("nano")
    except EngineError as error:
        return str(error)
    return None


pytestmark = [
    pytest.mark.shared,
    pytest.mark.nightly,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not TILES.is_dir(), reason="../shared/data/mt is not here"),
    pytest.mark.skipif(bundle_missing() is not None, reason=str(bundle_missing())),
]


def rows(split, normal=None):
    found = [json.loads(line) for line in (TILES / "index.jsonl").read_text().splitlines()]
    return [
        TILES / row["image"]
        for row in found
        if row["split"] == split and normal in (None, row["normal"])
    ]


def station(folder, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "station.cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )


def test_a_recorded_run_over_all_validation_tiles_is_verified(tmp_path):
    good, line = tmp_path / "good.txt", tmp_path / "line.txt"
    good.write_text("\n".join(map(str, rows("train", True)[:60])))
    line.write_text("\n".join(map(str, rows("val"))))
    (tmp_path / "station.toml").write_text(
        "[bus]\npub_port = 0\nctl_port = 0\n[describe]\nenabled = false\n"
        "[record]\nenabled = true\nevery_ok = 1\nmin_free_bytes = 0\n"
    )
    assert station(tmp_path, "enroll", "--recipe", "mt", "--normals", str(good)).returncode == 0
    assert station(tmp_path, "run", "--recipe", "mt", "--source", str(line)).returncode == 0
    (recording,) = (tmp_path / "var/recordings").glob("*.mcap")
    same = station(tmp_path, "replay", str(recording), "--recipe", "mt", "--verify")
    assert same.returncode == 0, same.stderr
    assert "verified 198 parts: 0 differ" in same.stdout + same.stderr
    other = station(
        tmp_path, "replay", str(recording), "--recipe", "mt", "--verify", "--threshold", "0.001"
    )
    assert other.returncode == 7
    assert "verdict" in other.stdout + other.stderr


def test_a_lamp_that_dims_one_percent_a_minute_alarms_before_false_rejects_double(tmp_path):
    bundle = load_bundle("nano")

    def factory(mode):
        return Detector.open(bundle, mode, "ort-cpu")

    pictures = [(p.name, cv2.imread(str(p))) for p in rows("train", True)]
    enroll(pictures[:40], RecipeArgs(name="mt"), factory, tmp_path)
    loaded, detector, _ = open_recipe(tmp_path, "mt", factory)
    product = Product(detector, loaded)
    line = [picture for _, picture in pictures[100:]]

    def rejected(picture, light):
        frame = Frame(dimmed(picture, light), None, "tile", 0, uikit.T0, 1)
        prepared = prepare(frame, product, live=False)
        if prepared.refusal is not None:
            return True
        found = outcome(prepared, infer([prepared], product), product)
        return found.verdict is not Verdict.OK

    at = light_at_alarm(line)
    before = np.mean([rejected(p, 1.0) for p in line[:60]])
    then = np.mean([rejected(p, at) for p in line[:60]])
    print(f"alarm at {1 - at:.1%} less light; false rejects {before:.1%} before, {then:.1%} then")
    assert then < 2 * max(before, 1 / 60)


def dimmed(picture, light):
    return np.clip(picture * light, 0, 255).astype(np.uint8)


def light_at_alarm(line, per_minute=60):
    """How much light is left when the monitor alarms, from pictures alone (scores stand still)."""
    events = uikit.Events()
    monitor = DriftMonitor([], 1.0, events)
    rng = np.random.default_rng(4)
    for n in range(600 + 40 * per_minute):
        light = 1.0 - 0.01 * max(0, n - 600) / per_minute
        answer = uikit.result(n + 1, "OK")
        picture = dimmed(line[rng.integers(len(line))], light)
        frame = Frame(picture, None, "tile", 0, uikit.T0, n)
        monitor.part(PartRecord(frame, body(answer), answer, None, (), None, 0.5))
        if events.told:
            assert light < 1.0, f"a false alarm: {events.told}"
            return light
    raise AssertionError("no alarm in 40 minutes")
