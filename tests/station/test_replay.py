"""`station replay`: what it compares, how it counts, what it leaves alone."""

import socket
from pathlib import Path

import pytest
import uikit

from engines.errors import UsageError
from station.parts import PartRecord
from station.replay import _ports, replay
from station.schema import body
from station.settings import BusSettings, Settings
from station.sources.base import Frame
from station.verify import Verifier


def judged(n, verdict, recorded, **tags):
    """A part judged `verdict` now, with what the recording says of it in its frame's tags."""
    answer = uikit.result(n, verdict)
    held = {"verdict": recorded, "reason": str(answer.reason), "score": repr(answer.score)}
    held["threshold"] = repr(answer.threshold)
    held = {k: v for k, v in (held | tags).items() if v != "None"}
    frame = Frame(None, None, f"disc-{n}", 0, uikit.T0, n, tags=held)
    return PartRecord(frame, body(answer), answer, None, (), None, 0.5)


def test_the_closing_sentence_counts_parts_not_fields(capsys):
    verifier = Verifier()
    verifier.part(judged(1, "OK", "OK"))
    verifier.part(judged(2, "OK", "NG", score="0.9"))  # two fields of one part
    verifier.part(judged(3, "OK", "UNDECIDED", reason="deadline"))
    verifier.tell(verify=True)
    told = capsys.readouterr().out
    assert "verified: 2 parts, 1 differ (1 NG -> OK); 1 part judged by the clock left out" in told
    assert "disc-2" in told
    assert "disc-1" not in told


def test_the_smallest_difference_of_a_score_is_one(capsys):
    verifier = Verifier()
    near = judged(1, "OK", "OK")
    score = near.result.score
    verifier.part(judged(1, "OK", "OK", score=repr(score + 2**-50)))
    assert verifier.differing == 1
    verifier.tell(verify=True)
    assert repr(score) in capsys.readouterr().out.replace("\n", "")


def test_another_threshold_by_intent_tells_changed_verdicts_with_both_limits(capsys):
    verifier = Verifier(what_if=True)
    verifier.part(judged(1, "OK", "OK", threshold="0.25"))
    verifier.part(judged(2, "OK", "NG", threshold="0.25"))
    verifier.tell(verify=False)
    told = capsys.readouterr().out
    assert "compared with the recording: 2 parts, 1 would get another verdict" in told
    assert f"0.25 -> {uikit.result(2, 'OK').threshold:.4g}" in told
    assert "disc-1" not in told


def test_speed_is_for_recordings(tmp_path):
    with pytest.raises(UsageError, match="--speed needs a recording"):
        replay(Settings(), tmp_path, speed=1.0)


def test_a_replay_leaves_the_ports_of_a_live_station_alone():
    assert _ports(Settings()) == {"pub_port": 0, "ctl_port": 0}
    with socket.socket() as live, socket.socket() as free:
        live.bind(("127.0.0.1", 0))
        free.bind(("127.0.0.1", 0))
        used, unused = live.getsockname()[1], free.getsockname()[1]
        free.close()
        busy = Settings(bus=BusSettings(pub_port=used, ctl_port=unused))
        assert _ports(busy) == {"pub_port": 0, "ctl_port": 0}
    chosen = Settings(bus=BusSettings(pub_port=used, ctl_port=unused))
    assert _ports(chosen) == {}  # a page may watch it there


def test_enrolling_from_a_folder_ignores_the_lines_loop_and_pace(tmp_path):
    from station.cli_enroll import once
    from station.settings import SourceSettings

    line = SourceSettings(spec=str(tmp_path), loop=True, watch=True, fps=2.0)
    assert once(line) == SourceSettings(spec=str(tmp_path))
    camera = SourceSettings(spec="http://127.0.0.1:1/stream", fps=12.0, loop=True)
    assert once(camera).fps == 12.0
    assert Path(once(line).spec) == tmp_path
