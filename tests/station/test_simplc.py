"""The scripted line: it runs, it injects faults, and it catches a station that lies."""

import json
import subprocess
import sys

import pytest

from engines.errors import ConfigError
from station.schema import Result, body
from station.simplc_drive import Answer, State
from station.simplc_line import Clock, run_line
from station.simplc_score import PlcLog, reconcile, tally
from station.simplc_script import Fault, Part, Script, load_script, parse_faults, plan
from tests.station.gatekit import (
    ROOT,
    Program,
    ScriptedStation,
    free_port,
    gateway_words,
    truth,
)


@pytest.fixture
def station(tmp_path):
    made = ScriptedStation(tmp_path / "ledger.db")
    yield made
    made.close()


def sim_plc(station, tmp_path, *words, config="station.toml"):
    """Run it. Without a takt no part is missed, and the deadline is for a starved machine."""
    words = words if "--deadline-ms" in words else (*words, "--deadline-ms", 20_000)
    (tmp_path / config).write_text('[station]\nline = "l1"\nname = "s1"\n')
    done = subprocess.run(
        [
            *(sys.executable, "-m", "station.cli", "sim-plc", "--config", str(tmp_path / config)),
            *("--ctl", station.ctl, "--log", str(tmp_path / "plc.jsonl"), *map(str, words)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    log = tmp_path / "plc.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return done, rows


def test_a_line_over_isp_scores_every_part_and_exits_0(station, tmp_path):
    done, rows = sim_plc(station, tmp_path, "--parts", 60, "--takt-ms", 0, "--jitter-ms", 3)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) == 60 == station.ledger.last_seq("result")
    assert all(row["verdict"] == truth(row["part_id"]) for row in rows)
    assert all(row["passed"] == (row["verdict"] == "OK") for row in rows)
    assert "trigger to verdict: p50" in done.stdout


def test_faults_of_the_plc_never_pass_a_part(station, tmp_path):
    faults = "repeat=0.2,burst=0.2,vanish=0.1,noise=0.1"
    done, rows = sim_plc(
        station, tmp_path, "--parts", 100, "--takt-ms", 0, "--faults", faults, "--allow-missing"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    by_fault = {fault: [r for r in rows if r["fault"] == fault] for fault in Fault}
    assert all(by_fault.values())
    assert {r["reason"] for r in by_fault["repeat"][1::2]} == {"duplicate"}
    assert {r["reason"] for r in by_fault["vanish"]} == {"vanished", "duplicate"}
    assert {"busy"} <= {r["reason"] for r in by_fault["burst"]}
    assert not any(r["passed"] for r in by_fault["vanish"])


def test_a_line_over_modbus_scores_every_part_and_exits_0(station, tmp_path):
    pytest.importorskip("pymodbus")
    port = free_port()
    with Program(*gateway_words(station, port, tmp_path), log=tmp_path / "modbus.log"):
        done, rows = sim_plc(
            station, tmp_path, "--by", "modbus", "--port", port, "--parts", 40, "--takt-ms", 0
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert [r["verdict"] for r in rows] == [truth(str(n)) for n in range(1, 41)]
        done, rows = sim_plc(
            *(station, tmp_path, "--by", "modbus", "--port", port, "--parts", 60, "--takt-ms", 0),
            *("--first-id", 100, "--faults", "repeat=0.2,burst=0.2,vanish=0.1,noise=0.1"),
            "--allow-missing",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        reasons = {r["reason"] for r in rows if r["fault"]}
        assert {"duplicate", "overrun", "bad_id", "vanished"} <= reasons


def test_unanswered_parts_fail_the_run_unless_allowed(station, tmp_path):
    station.ready = False
    words = ["--parts", 3, "--takt-ms", 1, "--deadline-ms", 100, "--wait-s", 0.5]
    done, _ = sim_plc(station, tmp_path, *words)
    assert done.returncode == 1 and "was not READY within 0.5 s" in done.stderr
    station.ready, station.silent = True, True
    done, rows = sim_plc(station, tmp_path, *words, "--no-check")
    assert done.returncode == 7 and "had no verdict" in done.stderr
    assert "Traceback" not in done.stderr and not any(r["passed"] for r in rows)


def test_a_wrong_script_is_one_sentence():
    with pytest.raises(ConfigError, match="takt_ms"):
        load_script(None, takt_ms=-1.0)
    with pytest.raises(ConfigError, match="name=probability"):
        parse_faults("repeat")
    with pytest.raises(ConfigError, match="faults"):
        load_script(None, faults={"explode": 0.1})


def test_the_same_script_gives_the_same_parts():
    script = Script(parts=200, jitter_ms=20, faults={Fault.BURST: 0.1, Fault.NOISE: 0.1})
    parts = list(plan(script))
    assert parts == list(plan(script))
    assert {p.fault for p in parts} == {None, Fault.BURST, Fault.NOISE}
    assert all(abs(p.due_s - p.number * 0.2) <= 0.02 for p in parts)


def test_a_line_does_not_wait_for_the_station():
    """One part takes 10 takts: the parts that passed the gate meanwhile are rejected unseen."""
    now = [0.0]

    class Slow:
        def inspect(self, trigger, part_id, fault=None):
            now[0] += 1.0 if trigger == 3 else 0.01
            return [Answer(State.VERDICT, f"{trigger:016x}", True, "OK")]

    log = PlcLog(None)
    clock = Clock(lambda: now[0], lambda s: now.__setitem__(0, now[0] + s))
    script = Script(parts=20, takt_ms=100)
    run_line(script, plan(script), Slow(), log, clock=clock)
    states = [row["state"] for row in log.rows]
    assert states.count("missed") == 8 and not any(
        r["passed"] for r in log.rows if r["state"] == "missed"
    )


def stored(trigger_id, verdict="OK", seq=1, **more):
    ok = verdict == "OK"
    return body(
        Result(
            line="l1", station="s1", epoch="0" * 16, seq=seq, trigger_id=trigger_id,
            part_id="p", attempt=1, verdict=verdict, reason="score", late=more.get("late", False),
            simulated=False, score=0.1 if ok else 0.9, threshold=0.5, regions=(), region_count=0,
            recipe="", recipe_sha="", bundle_sha="", config_sha="", t_trigger_us=1,
            t_capture_us=None, t_done_us=2, timings_us={}, image_ref=None, desc_state="none",
        )
    )  # fmt: skip


def logged(*answers):
    log = PlcLog(None)
    for number, answer in enumerate(answers):
        log.add(Part(number, number, 0.0, None), "p", answer, 0.0)
    return log.rows


def said(trigger_id, verdict="OK", passed=None, seq=1, accepted=True):
    passed = verdict == "OK" if passed is None else passed
    return Answer(State.VERDICT, trigger_id, passed, verdict, "score", accepted, "0" * 16, seq)


A, B = "a" * 16, "b" * 16


@pytest.mark.parametrize(
    ("answers", "ledger", "found"),
    [
        ([said(A)], [stored(A)], None),
        ([said(A)], [stored(A, "NG")], "false_ok"),
        ([said(A)], [stored(A, late=True)], "false_ok"),
        ([said(A)], [], "false_ok"),
        ([said(A, "NG", passed=True)], [stored(A, "NG")], "false_ok"),
        ([said(A, "NG")], [stored(A)], "wrong"),
        ([said(A)], [stored(A), stored(A, seq=2)], "doubled"),
        ([said(A), said(A, seq=2)], [stored(A)], "broken"),
        ([said(A, seq=2), said(B, seq=1)], [stored(A, seq=2), stored(B)], "disordered"),
        ([Answer(State.MISSING, A, accepted=True)], [], "lost"),
        ([Answer(State.MISSING, A, accepted=False)], [], None),
        ([Answer(State.MISSING, A, accepted=True)], [stored(A, "NG")], None),
    ],
)
def test_the_score_finds_each_kind_of_lie(answers, ledger, found):
    rows = logged(*answers)
    score = tally(rows)
    reconcile(score, rows, ledger)
    assert bool(score.lies) is (found is not None)
    if found:
        assert getattr(score, found)
