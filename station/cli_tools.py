"""`station schema` and `station config`: what the messages and the configuration are."""

import json
from pathlib import Path
from typing import Annotated

import typer


def schema(
    out: Annotated[Path | None, typer.Option(help="Folder: one file per message.")] = None,
) -> None:
    """JSON Schemas (2020-12) of every message on the bus."""
    from station.schema_ctl import json_schemas

    schemas = json_schemas()
    if out is None:
        typer.echo(json.dumps(schemas, indent=2))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, content in schemas.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    typer.echo(f"{len(schemas)} schemas in {out}")


def config(
    path: Annotated[Path | None, typer.Option("--config", help="station.toml to read.")] = None,
) -> None:
    """The configuration that a run would use, and its hash."""
    from station.settings import load_settings

    settings = load_settings(path)
    typer.echo(settings.model_dump_json(indent=2))
    typer.echo(f"sha256 {settings.sha()}", err=True)
