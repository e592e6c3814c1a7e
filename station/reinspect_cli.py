"""The command `station reinspect`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from engines.errors import UsageError


def reinspect(
    archive: Annotated[list[Path], typer.Argument(help="Archives, folders or lists of pictures.")],
    recipe: Annotated[str | None, typer.Option(help="The product.")] = None,
    out: Annotated[Path, typer.Option(help="Report (JSON lines); goes on if begun.")] = Path(
        "reinspect.jsonl"
    ),
    workers: Annotated[int, typer.Option(help="Processes; 0 = one per core.")] = 0,
    shard: Annotated[
        str | None, typer.Option(help="i/n: this machine's share of the work.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help="Ray cluster: HOST:PORT, auto, or local (extra ray).")
    ] = None,
    bundle: Annotated[str | None, typer.Option(help="nano, or the path of a bundle.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="station.toml to read.")] = None,
) -> None:
    """Inspect archived pictures again with today's recipe and engine; no bus, no ledger."""
    from station.cli_run import overrides
    from station.logs import set_up
    from station.reinspect import reinspect as run
    from station.reinspect_items import items
    from station.reinspect_items import shard as share
    from station.settings import load_settings

    if workers < 0:
        raise UsageError(f"--workers {workers}: say 0 (one per core) or more")
    given = overrides(recipe__name=recipe, engine__bundle=bundle)
    settings = load_settings(config, given)
    if settings.recipe.name is None:
        raise UsageError("no recipe to inspect with: name one with --recipe (see station enroll)")
    set_up(settings.log)
    work = share(items(archive), shard)
    live = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if live:
            typer.echo(f"\r{done}/{total} ", nl=False, err=True)

    found = run(settings, work, out, workers, progress, ray)
    said = ", ".join(f"{count} {name}" for name, count in sorted(found.verdicts.items()))
    rate = found.fresh / found.seconds if found.seconds else 0.0
    typer.echo(f"{found.parts} parts: {said}")
    for (was, now), count in sorted(found.changed.items()):
        typer.echo(f"  {count} were {was}, are {now}")
    typer.echo(f"{found.fresh} inspected now, {rate:.1f}/s; report in {found.out}")
