"""Every `python -m calibration.*` ends in a sentence and an exit code, and writes strict JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.entry import read_json, run_command, write_json
from engines.errors import RecipeError, SourceError, UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SourceError("no folder x: give one"), 4, "error: no folder x: give one\n"),
        (UsageError("no"), 2, "error: no\n"),
        (RecipeError("no"), 8, "error: no\n"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (PermissionError(13, "Permission denied", "/out"), 1, "error: /out: Permission denied"),
    ],
)
def test_a_command_ends_with_the_errors_code_and_one_sentence(capsys, error, code, said):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(main)
    told = capsys.readouterr().err
    assert end.value.code == code
    assert told.startswith(said) and told.count("\n") == 1


def test_a_command_that_works_ends_with_nought_and_a_fault_of_ours_is_not_hidden():
    with pytest.raises(SystemExit) as end:
        run_command(lambda: None)
    assert end.value.code == 0
    for fault in (ZeroDivisionError(), OSError("no file's fault")):

        def main(fault=fault):
            raise fault

        with pytest.raises(type(fault)):
            run_command(main)


def test_every_command_of_calibration_ends_that_way():
    commands = [
        file
        for file in (ROOT / "calibration").glob("*.py")
        if 'if __name__ == "__main__":' in file.read_text()
    ]
    assert len(commands) >= 12
    for file in commands:
        last = file.read_text().split('if __name__ == "__main__":')[1]
        assert last.strip().startswith("run_command("), file.name


def test_a_folder_that_is_not_there_is_one_sentence_of_the_process(tmp_path):
    command = [sys.executable, "-m", "calibration.tiles", "--json", "x.json", "--data", "/nope"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4
    assert done.stderr == "error: no folder /nope: give the folder of an image set\n"


def test_reports_are_strict_json_or_a_sentence(tmp_path):
    path = tmp_path / "a" / "r.json"
    write_json(path, {"x": None})
    assert json.loads(path.read_text()) == read_json(path) == {"x": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"x": float("nan")})
    path.write_text("{")
    for wrong in (path, tmp_path / "none.json"):
        with pytest.raises(SourceError, match="is no JSON file"):
            read_json(wrong)
