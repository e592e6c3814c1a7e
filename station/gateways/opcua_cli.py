"""The command line of the OPC UA gateway: `station gateway opcua [user NAME]`."""

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from engines.errors import UsageError
from station.gateways.options import camera_override, camera_prefix, gateway_address, log

app = typer.Typer(help="The station as an OPC UA server.")


@app.callback(invoke_without_command=True)
def opcua(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="station.toml to read.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="opc.tcp://host:port/path.")] = None,
    ctl: Annotated[str | None, typer.Option(help="The station's ROUTER, tcp://host:port.")] = None,
    pub: Annotated[str | None, typer.Option(help="The station's PUB, tcp://host:port.")] = None,
    deadline_ms: Annotated[int | None, typer.Option(min=1, max=600_000, help="Per part.")] = None,
    users: Annotated[Path | None, typer.Option(help="File of users; without it anyone.")] = None,
    pki: Annotated[
        Path | None, typer.Option(help="Folder of certificate and key: encrypts everything.")
    ] = None,
    insecure: Annotated[bool, typer.Option(help="Allow an open endpoint off loopback.")] = False,
    camera: Annotated[
        str | None, typer.Option(help="Of several: whose parts (gateway.camera).")
    ] = None,
    allow_simulated: Annotated[
        bool, typer.Option(help="Let OK of a station that runs on recorded pictures pass.")
    ] = False,
) -> None:
    """Serve one station's verdicts over OPC UA."""
    if context.invoked_subcommand is not None:
        return
    from station.gateways.opcua import OpcuaGateway, OpcuaSettings
    from station.logs import set_up
    from station.settings import load_settings

    settings = load_settings(config, camera_override(camera))
    set_up(settings.log)
    address = gateway_address(settings, ctl, pub, "opcua")
    options = OpcuaSettings(
        endpoint=endpoint or settings.gateway.opcua_endpoint,
        deadline_ms=deadline_ms or settings.gateway.deadline_ms,
        users=users,
        pki=pki,
        insecure=insecure,
        camera=camera_prefix(settings, needed=False),
        allow_simulated=allow_simulated,
    )

    async def serve() -> None:
        gateway = OpcuaGateway(address, options)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            await gateway.start()
            log().info("opcua gateway listens", endpoint=options.endpoint, ctl=address.ctl)
            await gateway.run(stop)
        finally:
            await gateway.close()

    asyncio.run(serve())


@app.command()
def user(
    name: Annotated[str, typer.Argument(help="Who may connect.")],
    file: Annotated[Path, typer.Option(help="The users' file to add to.")] = Path(
        "var/keys/opcua-users"
    ),
    password: Annotated[
        str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True)
    ] = "",
) -> None:
    """Add a user (or change a password) of the OPC UA gateway."""
    from station.gateways.opcua_security import Users, user_line

    line = user_line(name, password)
    if file.exists():
        Users(file)  # ConfigError: a file of something else is not added to
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        old = file.read_text().splitlines() if file.exists() else []
        file.touch(mode=0o600)
        kept = [entry for entry in old if entry.split(":")[0] != name]
        file.write_text("\n".join([*kept, line]) + "\n")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None
    typer.echo(f"{name} may connect; users are in {file}")
