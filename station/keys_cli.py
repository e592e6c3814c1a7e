"""`station keys new | list | revoke`: who may watch, trigger and administer."""

from pathlib import Path
from typing import Annotated

import typer

from station.keys import Role, check_folder, list_clients, new_client, revoke_client
from station.settings import load_settings

app = typer.Typer(help="Keys of the bus (CURVE): who may watch, trigger, administer.")
Folder = Annotated[
    Path | None, typer.Option("--keys", help="The station's key folder (default: bus.keys).")
]
Config = Annotated[Path | None, typer.Option("--config", help="station.toml to read.")]


def _folder(keys: Path | None, config: Path | None) -> Path:
    folder = keys or load_settings(config).bus.keys
    check_folder(folder)
    return folder


@app.command("new")
def _new(
    name: str,
    role: Annotated[Role, typer.Option(help="What the key may do.")] = Role.OBSERVER,
    out: Annotated[
        Path | None, typer.Option(help="File for the client (default NAME.key.json).")
    ] = None,
    keys: Folder = None,
    config: Config = None,
) -> None:
    """Make a key for one client; carry the file there and keep it secret."""
    target = out or Path(f"{name}.key.json")
    identity = new_client(_folder(keys, config), name, role, target)
    typer.echo(f"{target}: {role} {name} {identity.public} (station {identity.station})")
    typer.echo("A running station takes it at SIGHUP (systemctl reload).")


@app.command("list")
def _list(keys: Folder = None, config: Config = None) -> None:
    """Show who has a key."""
    folder = _folder(keys, config)
    clients = list_clients(folder)
    if not clients:
        typer.echo(f"{folder} holds no keys: make one with `station keys new NAME`", err=True)
    for client in clients:
        state = "revoked" if client.revoked else "valid"
        typer.echo(f"{client.name:20} {client.role:9} {state:8} {client.public}")


@app.command("revoke")
def _revoke(name: str, keys: Folder = None, config: Config = None) -> None:
    """Take a key away."""
    revoke_client(_folder(keys, config), name)
    typer.echo(f"{name} is revoked; a running station cuts it off at SIGHUP (systemctl reload).")
