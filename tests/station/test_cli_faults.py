"""Wrong paths, empty arguments, closed pipes: one sentence and an exit code for every command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from station.cli import _run

ROOT = Path(__file__).resolve().parents[2]


def said(capsys, *argv):
    """(exit code, what stands on stderr) of a command in this process."""
    code = _run([str(a) for a in argv])
    return code, capsys.readouterr().err


def process(command, folder):
    """A shell command in which STATION stands for the program."""
    program = f"{sys.executable} -m station.cli"
    return subprocess.run(
        ["bash", "-c", "set -o pipefail; " + command.replace("STATION", program)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize(
    "argv",
    [
        ("schema", "--out", "text.txt"),
        ("schema", "--out", "text.txt/below"),
        ("keys", "new", "c1", "--keys", "text.txt/keys"),
        ("keys", "new", "c1", "--keys", "keys", "--out", "text.txt/c1.json"),
        ("keys", "new", "c1", "--keys", "keys", "--out", "/proc/text.txt"),
    ],
)
def test_a_path_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("mine")
    code, err = said(capsys, *argv)
    assert code == 2 and err.count("\n") == 1
    assert err.startswith(("station: text.txt", "station: /proc/text.txt:"))
    assert "internal" not in err
    assert Path("text.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "argv",
    [
        ("run", "--source", ""),
        ("run", "--source="),
        ("run", "--source", " "),
        ("enroll", "--recipe", "x", "--normals", ""),
        ("confirm", "--recipe", "x", "--normals", ""),
        ("replay", ""),
        ("record", "--out", "x.mcap", "--source", ""),
        ("reinspect", "", "--recipe", "x"),
        ("demo", "--data", ""),
    ],
)
def test_an_empty_argument_is_refused_and_never_means_the_working_directory(
    tmp_path, monkeypatch, capsys, argv
):
    monkeypatch.chdir(tmp_path)
    code, err = said(capsys, *argv)
    assert code == 2 and "is empty" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        ("--noun", "\t"),
        ("--phrase", "{"),
        ("--phrase", "{}"),
        ("--phrase", "x" * 999),
        ("--deadline-ms", "99999999999"),
        ("--deadline-ms", "0"),
        ("--region", "0,0,1,1"),
        ("--region", "1,2"),
        ("--tiles", "0x1"),
        ("--tiles", "99x99"),
        ("--overlap", "nan"),
        ("--overlap", "-1"),
        ("--mm-per-px", "inf"),
        ("--mode", "best"),
        ("--alpha", "nan"),
        ("--alpha", "1"),
        ("--shots", "0"),
        ("--count", "-3"),
        ("--recipe", "../x"),
    ],
)
def test_an_option_of_enroll_that_makes_no_sense_is_refused_before_anything_is_read(
    tmp_path, monkeypatch, capsys, given
):
    monkeypatch.chdir(tmp_path)
    words = {"--recipe": "x", "--normals": "nowhere"} | dict([given])
    code, err = said(capsys, "enroll", *(word for pair in words.items() for word in pair))
    assert code == 2, err
    assert given[0] in err and "Value error" not in err and "nowhere" not in err


@pytest.mark.parametrize(
    "given",
    [("--threshold", v) for v in ("nan", "inf", "-5", "2")]
    + [("--speed", v) for v in ("nan", "inf", "-1", "1e-300")],
)
def test_an_option_of_replay_that_makes_no_sense_is_refused(tmp_path, monkeypatch, capsys, given):
    monkeypatch.chdir(tmp_path)
    code, err = said(capsys, "replay", "nowhere", *given)
    assert code == 2 and given[0] in err and "nowhere" not in err


@pytest.mark.parametrize("spec", ["", " \t"])
def test_an_empty_source_of_the_settings_is_refused_too(tmp_path, monkeypatch, capsys, spec):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STATION_SOURCE__SPEC", spec)
    code, err = said(capsys, "record", "--out", "x.mcap")
    assert code == 4 and err.startswith("station: the source is empty")


@pytest.mark.parametrize("content", [b"\xff\xd8\xff photo", b"notes of mine\n"])
def test_a_file_that_holds_no_users_is_refused_as_it_was(tmp_path, capsys, content):
    (tmp_path / "img.jpg").write_bytes(content)
    user = ("user", "anna", "--password", "correct horse", "--file", tmp_path / "img.jpg")
    for words in (user, ("--users", tmp_path / "img.jpg")):
        code, err = said(capsys, "gateway", "opcua", *words)
        assert code == 3 and "img.jpg" in err and "internal" not in err
    assert (tmp_path / "img.jpg").read_bytes() == content


def test_a_port_that_is_none_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, err = said(capsys, "gateway", "modbus", "--port", "99999")
    assert code == 2 and "--port" in err


@pytest.mark.parametrize(
    "argv", [("run", "--source"), ("ask",), ("replay",), ("ledger", "forget"), ("keys", "new")]
)
def test_an_argument_that_is_not_utf_8_is_refused(tmp_path, monkeypatch, capsys, argv):
    monkeypatch.chdir(tmp_path)
    code, err = said(capsys, *argv, os.fsdecode(b"gr\xf6\xdfe"))
    assert code == 2 and err.startswith(r"station: 'gr\udcf6\udcdfe' is not UTF-8")
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("STATION_SOURCE__SPEC", os.fsdecode(b"gr\xf6\xdfe"))
    code, err = said(capsys, "run")
    assert code == 3 and "STATION_SOURCE__SPEC: its value is not UTF-8" in err


def test_a_full_disk_behind_the_output_is_one_sentence(tmp_path):
    done = process("STATION config > /dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "station: the output cannot be written: No space"
    )
    assert "Exception ignored" not in done.stderr


def test_opencv_writes_nothing_between_the_lines_of_the_log(tmp_path):
    code = (
        "import sys; from station.cli import _run; import cv2; cv2.imread('none.png');"
        "cv2.imdecode(__import__('numpy').frombuffer(b'BM' + bytes(100), 'u1'), 1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_is_no_fault(tmp_path):
    """typer and rich end with 1 when a pipe is closed."""
    for command in ("STATION --help", "STATION config", "STATION schema"):
        done = process(f"{command} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}", tmp_path)
        assert done.returncode == 0, command
        assert "rror" not in done.stderr
    done = process("STATION config >&-", tmp_path)
    assert done.returncode == 0 and "rror" not in done.stderr


def test_what_is_printed_may_hold_a_name_that_is_not_utf_8(tmp_path):
    code = (
        "import sys; from station import cli_faults as c; c.printable_output(); print(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.fsdecode(b"gr\xf6\xdfe.jpg")],
        cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"gr\\udcf6\\udcdfe.jpg\n"


def test_a_recipe_that_the_configuration_would_overrule_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("station.toml").write_text('[source]\nspec = "parts"\nrecipe = "lid"\n')
    code, err = said(capsys, "run", "--recipe", "cap")
    assert code == 2 and "--recipe cap: station.toml gives a camera the recipe lid" in err
