"""The command `station doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from station.settings import load_settings

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def doctor(
    config: Annotated[Path | None, typer.Option(help="station.toml to read.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What can run here, and why not; the exit code is that of the first failure."""
    from station.doctor import run_doctor

    raise typer.Exit(run_doctor(load_settings(config), json, typer.echo))
