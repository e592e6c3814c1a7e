import json
from pathlib import Path

import pytest

from calibration.datasets import Sample
from calibration.evaluate import summarise
from calibration.promise import Enrolment, distinct_parts
from calibration.report import main
from engines.errors import SourceError


def entry():
    run = {"pixel": 90.0, "image": None, "pro": 50.0, "shots": ["a.png"]}
    found = summarise([run, {**run, "pixel": 92.0, "shots": ["b.png"]}])
    return {
        "noun": "lid", "judged": 7, "ms": 12.0, "fused_difference": 0.0,
        "ours": {"0": summarise([{**run, "shots": []}]), "1": found},
        "baselines": {"PatchCore all": {"1": found}},
        "ablations": {"full": {"pixel": 91.0, "image": None}},
    }  # fmt: skip


def test_the_page_says_what_was_measured_and_which_shots(tmp_path):
    report = {"trained": "a little", "split": "val", "runs": 2, "sets": {"mt": entry()}}
    (tmp_path / "seen.json").write_text(json.dumps(report))
    (tmp_path / "notes.md").write_text("## Limits\n\nMany.")
    main(
        [
            str(tmp_path / "seen.json"),
            "--notes", str(tmp_path / "notes.md"),
            "--out", str(tmp_path / "page.md"),
        ]
    )  # fmt: skip
    page = (tmp_path / "page.md").read_text()
    assert "91.0 (1.4)" in page
    assert "88.8" in page  # the paper's row for mt at one shot
    assert "`b.png`" in page
    assert "| full | 91.0 | - |" in page
    assert "Many." in page


def test_summaries_keep_runs_and_leave_out_what_is_undefined():
    found = summarise([{"pixel": 1.0, "image": None}, {"pixel": 3.0, "image": None}])
    assert found["mean"] == {"image": None, "pixel": 2.0}
    assert found["deviation"]["image"] is None
    assert len(found["runs"]) == 2


def test_a_file_that_is_no_report_is_named(tmp_path):
    (tmp_path / "r.json").write_text('{"mt": 1}')
    with pytest.raises(SourceError, match=r"r\.json is no report of calibration\.evaluate"):
        main([str(tmp_path / "r.json"), "--out", str(tmp_path / "page.md")])


def test_one_picture_per_spot_counts():
    names = (
        "01_200828110014_277500_315_crop_2.jpg",
        "01_200901110014_277500_315_crop_2.jpg",
        "01_200828110055_305000_090_crop_2.jpg",
        "lid.png",
    )
    samples = [Sample(Path(n), None, "normal", True) for n in names]
    assert [s.image.name for s in distinct_parts(samples)] == [names[0], names[2], names[3]]


def test_an_enrolment_holds_when_the_rate_lies_inside():
    assert Enrolment(60, 80, 0.5, 0.05, 0.0, 0.12).held
    assert not Enrolment(60, 80, 0.5, 0.2, 0.0, 0.12).held
