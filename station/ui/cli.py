"""The command `station ui`."""

from pathlib import Path
from typing import Annotated

import typer

from engines.errors import EngineError
from station.address import reach
from station.keys import load_identity
from station.settings import Settings, load_settings

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def ui(
    config: Annotated[Path | None, typer.Option(help="station.toml to read.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to serve on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to serve on.")] = None,
    station: Annotated[
        str | None, typer.Option(help="Host of the station, if it is another machine.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Observer key file (CURVE).")] = None,
) -> None:
    """Serve the operator page until Ctrl-C."""
    from station.ui.server import serve

    given = {k: v for k, v in {"host": host, "port": port}.items() if v is not None}
    settings = load_settings(config, {"ui": given} if given else None)
    if key is not None:
        load_identity(key)  # a wrong one is told here, not by a page without news
    where = station or settings.bus.host
    serve(
        settings.ui,
        pub=reach(where, settings.bus.pub_port),
        ctl=reach(where, settings.bus.ctl_port),
        keys=key,
        recipes=settings.recipe.root,
        bundle=_bundle(settings),
        on_ready=lambda text: typer.echo(text, err=True),
    )


def _bundle(settings: Settings) -> Path | None:
    """The bundle's folder, for its gate figures; the page works without."""
    from engines.bundle import load_bundle

    try:
        return load_bundle(settings.engine.bundle).path
    except EngineError:
        return None
