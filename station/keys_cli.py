"""`station keys new | list | revoke`: who may watch, trigger and administer."""

from pathlib import Path
from typing import Annotated

import typer

from station.keys import Role, list_clients, new_client, revoke_client

app = typer.Typer(help="Keys of the bus (CURVE): who may watch, trigger, administer.")
DEFAULT_FOLDER = Path("var/keys")
Folder = Annotated[Path, typer.Option("--keys", help="The station's key folder.")]


@app.command("new")
def _new(
    name: str,
    role: Annotated[Role, typer.Option(help="What the key may do.")] = Role.OBSERVER,
    out: Annotated[
        Path | None, typer.Option(help="File for the client (default NAME.key.json).")
    ] = None,
    keys: Folder = DEFAULT_FOLDER,
) -> None:
    """Make a key for one client; carry the file there and keep it secret."""
    target = out or Path(f"{name}.key.json")
    identity = new_client(keys, name, role, target)
    typer.echo(f"{target}: {role} {name} {identity.public} (station {identity.station})")
    typer.echo("A running station takes it at SIGHUP (systemctl reload).")


@app.command("list")
def _list(keys: Folder = DEFAULT_FOLDER) -> None:
    """Show who has a key."""
    for client in list_clients(keys):
        state = "revoked" if client.revoked else "valid"
        typer.echo(f"{client.name:20} {client.role:9} {state:8} {client.public}")


@app.command("revoke")
def _revoke(name: str, keys: Folder = DEFAULT_FOLDER) -> None:
    """Take a key away."""
    revoke_client(keys, name)
    typer.echo(f"{name} is revoked; a running station cuts it off at SIGHUP (systemctl reload).")
