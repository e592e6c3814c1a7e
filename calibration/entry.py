"""What every `python -m calibration.*` shares: sentences and exit codes, strict JSON."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from engines.errors import SourceError, StationError


def read_json(path: Path) -> Any:
    """A JSON file that a person named; SourceError when it cannot be read or is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is no JSON file ({error}): give one that was written") from error


def write_json(path: Path, body: Any) -> None:
    """A report as strict JSON: what is undefined is null, never NaN (ValueError)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(body, indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def run_command(main: Callable[[], Any]) -> NoReturn:
    """Run a command and exit: 0, the StationError's code, 130 when interrupted, 1 for files.

    OSError is a file or folder that a person named (a report, an output folder): its own words say
    which. What is no fault of a person keeps its traceback.
    """
    try:
        main()
    except StationError as error:
        _leave(str(error), error.code)
    except KeyboardInterrupt:
        _leave("interrupted: the same command begins again, a training goes on where it was", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of a pipe has gone, as by SIGPIPE
        sys.exit(141)
    except OSError as error:
        if error.filename is None:
            raise
        _leave(f"{error.filename}: {error.strerror}: name another file or folder", 1)
    sys.exit(0)


def _leave(sentence: str, code: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(code)
