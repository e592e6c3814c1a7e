"""The 198 validation frames of ../shared/data/mt through the real station, twice."""

import json
from functools import partial
from pathlib import Path

import pytest

from tests.station.test_station_process import NANO, Ear, Home, ledger_bodies

MT = Path(__file__).resolve().parents[3] / "shared" / "data" / "mt"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not MT.exists(), reason="../shared/data/mt is not here"),
    pytest.mark.skipif(not NANO.exists(), reason="the nano bundle is not built"),
]


def lists(folder: Path) -> tuple[int, int]:
    """good.jsonl (60 good training frames) and val.jsonl (every validation frame)."""
    rows = [json.loads(line) for line in (MT / "index.jsonl").read_text().splitlines()]
    good = [r for r in rows if r["split"] == "train" and r["normal"]][:60]
    val = [r for r in rows if r["split"] == "val"]
    for name, chosen in (("good", good), ("val", val)):
        text = "".join(json.dumps({"image": str(MT / r["image"])}) + "\n" for r in chosen)
        (folder / f"{name}.jsonl").write_text(text)
    return len(good), len(val)


def test_198_frames_give_seq_1_to_198_the_same_bytes_everywhere_and_the_same_scores_twice(tmp_path):
    home = Home(tmp_path)
    assert lists(tmp_path) == (60, 198)
    done = home.run("enroll", "--recipe", "mt", "--normals", "good.jsonl", "--noun", "tile")
    assert done.returncode == 0, done.stderr
    runs = []
    for run in ("first", "second"):
        db = tmp_path / f"{run}.db"
        process = home.start("run", "--source", "val.jsonl", "--recipe", "mt", "--ledger", db)
        ear = Ear(home)
        try:
            epoch = ear.hello()["epoch"]
            ear.listen(partial(all_heard, ear), 200)
            fetched = ear.fetch("result", epoch)
        finally:
            ear.close()
            _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        heard = ear.heard["result"]
        assert [json.loads(b)["seq"] for b in fetched] == list(range(1, 199))
        assert ledger_bodies(db) == fetched
        assert heard == fetched[198 - len(heard) :], "the bus said something else"
        bodies = [json.loads(b) for b in fetched]
        first, end = bodies[20]["t_done_us"], bodies[-1]["t_done_us"]
        print(f"{run}: heard {len(heard)} live, {177e6 / (end - first):.1f} frames/s")
        runs.append([(b["part_id"], b["verdict"], b["reason"], b["score"]) for b in bodies])
    assert runs[0] == runs[1]


def all_heard(ear: Ear) -> bool:
    """Whether the last of the 198 verdicts was heard."""
    results = ear.heard.get("result")
    return bool(results) and json.loads(results[-1])["seq"] == 198
