"""The command `station export`."""

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import UsageError
from station.settings import load_settings

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def export(
    out: Annotated[Path, typer.Option(help="New folder to write.")],
    archive: Annotated[Path | None, typer.Option(help="Archive (default: archive.folder).")] = None,
    layout: Annotated[
        str, typer.Option(help="folder: pictures by class and a CSV; mvtec: a data set.")
    ] = "folder",
    config: Annotated[Path | None, typer.Option(help="station.toml to read.")] = None,
) -> None:
    """Copy the archived parts into a folder, for people or for re-training."""
    from station.archive_export import export as write

    if layout not in {"folder", "mvtec"}:
        raise UsageError(f"--layout {layout}: say folder or mvtec")
    source = archive if archive is not None else load_settings(config).archive.folder
    report = write(source, out, "mvtec" if layout == "mvtec" else "folder")
    told = ", ".join(f"{count} {kind}" for kind, count in report.classes.items())
    typer.echo(f"{report.parts} parts in {report.out} ({told})")
    if report.without_picture:
        typer.echo(f"{report.without_picture} of them without a picture", err=True)
