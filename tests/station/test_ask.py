"""`station ask`: the newest picture of a part, and a dialogue that outlives its context."""

import cv2
import numpy as np
import pytest

from engines.errors import EngineError, SourceError, UsageError
from station.ask_cli import find_part, talk
from station.schema import Result


def result(part_id, trigger, when):
    return Result(
        line="line1", station="st1", epoch="00" * 8, seq=1, trigger_id=trigger, part_id=part_id,
        attempt=1, verdict="NG", reason="score", late=False, simulated=False, score=0.9,
        threshold=0.5, regions=(), region_count=0, recipe="", recipe_sha="", bundle_sha="",
        config_sha="", t_trigger_us=when, t_capture_us=None, t_done_us=when, timings_us={},
        image_ref=None, desc_state="none",
    )  # fmt: skip


def archive(folder, part_id, trigger, when, kind="ng", grey=0):
    day = folder / kind / "20260101"
    day.mkdir(parents=True, exist_ok=True)
    stem = f"{when:016d}_{trigger}"
    (day / f"{stem}.json").write_bytes(result(part_id, trigger, when).model_dump_json().encode())
    cv2.imwrite(str(day / f"{stem}.png"), np.full((8, 8, 3), grey, np.uint8))


def test_the_newest_picture_of_a_part_is_found_by_part_or_trigger(tmp_path):
    archive(tmp_path, "A1", "0" * 15 + "1", 100, grey=10)
    archive(tmp_path, "A1", "0" * 15 + "2", 200, kind="undecided", grey=20)
    archive(tmp_path, "A10", "0" * 15 + "3", 300, grey=30)
    found = find_part(tmp_path, "A1")
    assert found.result.trigger_id == "0" * 15 + "2"
    assert cv2.imdecode(np.frombuffer(found.raw, np.uint8), 1)[0, 0, 0] == 20
    assert find_part(tmp_path, "0" * 15 + "1").result.t_trigger_us == 100


def test_a_part_that_is_not_archived_gives_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="holds no picture of part 'B7'"):
        find_part(tmp_path, "B7")


def test_a_damaged_result_of_the_archive_is_one_sentence(tmp_path):
    archive(tmp_path, "A1", "0" * 15 + "1", 100)
    (file,) = tmp_path.rglob("*.json")
    file.write_text('{"part_id": "A1"}')
    with pytest.raises(SourceError, match=r"1\.json: not a result of the archive") as caught:
        find_part(tmp_path, "A1")
    assert "\n" not in str(caught.value)


class Forgetful:
    """A describer whose context holds two earlier turns."""

    def __init__(self):
        self.heard = []

    def answer(self, request, description, question, earlier):
        if len(earlier) > 2:
            raise EngineError("this dialogue is longer than the describer's context")
        self.heard.append((question, [asked for asked, _ in earlier]))
        return f"answer to {question}"


def test_a_dialogue_goes_on_when_it_outgrows_the_context(monkeypatch, capsys):
    lines = iter(["one\n", "two\n", "three\n", "four\n", "\n"])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    describer = Forgetful()
    talk(describer, None, None, None)
    assert describer.heard[2] == ("three", ["one", "two"])
    assert describer.heard[3] == ("four", ["three"])
    assert capsys.readouterr().out.count("answer to") == 4


def test_one_question_gets_one_answer(capsys):
    talk(Forgetful(), None, None, "where?")
    assert capsys.readouterr().out == "answer to where?\n"
