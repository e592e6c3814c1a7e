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
    pytest.mark.slow,
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
        return Detector.open(bundle, mode)

    pictures = [(p.name, cv2.imread(str(p))) for p in rows("train", True)]
    enroll(pictures[:100], RecipeArgs(name="mt"), factory, tmp_path)
    loaded, detector, _ = open_recipe(tmp_path, "mt", factory)
    product = Product(detector, loaded)
    line = [picture for _, picture in pictures[100:]]

    def judged(picture, light):
        seen = np.clip(picture * light, 0, 255).astype(np.uint8)
        frame = Frame(seen, None, "tile", 0, uikit.T0, 1)
        prepared = prepare(frame, product, live=False)
        if prepared.refusal is not None:
            return frame, prepared.refusal.verdict, None
        found = outcome(prepared, infer([prepared], product), product)
        return frame, found.verdict, found.score

    def rejects(light, count=60):
        return np.mean([judged(p, light)[1] is not Verdict.OK for p in line[:count]])

    events = uikit.Events()
    monitor = DriftMonitor(loaded.calibration.scores, loaded.threshold, events)
    rng = np.random.default_rng(4)
    before, per_minute = rejects(1.0), 60
    at = None
    for n in range(600 + 40 * per_minute):
        light = 1.0 if n < 600 else 1.0 - 0.01 * (n - 600) / per_minute
        frame, verdict, score = judged(line[rng.integers(len(line))], light)
        if verdict is not Verdict.OK:
            continue
        answer = uikit.result(n + 1, "OK", score=score, threshold=loaded.threshold)
        record = PartRecord(frame, body(answer), answer, None, (), None, loaded.threshold)
        monitor.part(record)
        if any(severity == "warning" for _, severity, _ in events.told):
            at = light
            break
    assert at is not None
    assert at < 1.0, f"false alarm before anything changed: {events.told}"
    print(f"alarm at {1 - at:.1%} less light: {events.told[-1][2]}; rejects then {rejects(at):.1%}")
    assert rejects(at) < 2 * max(before, 1 / 60)
