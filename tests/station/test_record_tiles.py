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
    same = station(tmp_path, "replay", str(recording), "--verify")
    assert same.returncode == 0, same.stderr
    assert "verified: 198 parts, 0 differ" in same.stdout
    what_if = "replay", str(recording), "--threshold", "0.001"
    asked = station(tmp_path, *what_if)
    assert asked.returncode == 0, asked.stderr
    print(same.stdout, asked.stdout)
    assert "compared with the recording: 198 parts" in asked.stdout
    assert "OK -> NG" in asked.stdout
    assert "-> 0.001" in asked.stdout
    assert station(tmp_path, *what_if, "--verify").returncode == 7


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

    def rate(light):
        return np.mean([rejected(p, light) for p in line[:200]])

    at, before = light_at_alarm(line), rate(1.0)
    walk = {light: rate(light) for light in (at, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4)}
    told = ", ".join(f"{light:.0%}: {share:.1%}" for light, share in walk.items())
    print(f"alarm at {1 - at:.1%} less light; false rejects {before:.1%} at full light, {told}")
    doubled = 2 * max(before, 1 / 200)
    assert walk[at] < doubled
    assert max(walk.values()) >= doubled  # else the walk proves nothing


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
