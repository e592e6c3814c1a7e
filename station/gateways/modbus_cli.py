"""The command line of the Modbus gateway: `station gateway modbus`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from engines.errors import ConfigError
from station.gateways.options import camera_override, camera_prefix, gateway_address

app = typer.Typer(help="The station on Modbus TCP.")


@app.callback(invoke_without_command=True)
def modbus(
    config: Annotated[Path | None, typer.Option(help="station.toml to read.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on (502 needs rights).")
    ] = None,
    ctl: Annotated[str | None, typer.Option(help="The station's ROUTER, tcp://host:port.")] = None,
    pub: Annotated[str | None, typer.Option(help="The station's PUB, tcp://host:port.")] = None,
    deadline_ms: Annotated[int | None, typer.Option(min=1, max=600_000, help="Per part.")] = None,
    prefix: Annotated[
        str | None,
        typer.Option(help="Upper 32 bits of trigger ids, 8 hex digits; default: new each start."),
    ] = None,
    camera: Annotated[
        str | None, typer.Option(help="Of several: whose parts (gateway.camera).")
    ] = None,
    allow_simulated: Annotated[
        bool, typer.Option(help="Let OK of a station that runs on recorded pictures pass.")
    ] = False,
) -> None:
    """Serve one station's verdicts on Modbus TCP, registers only."""
    from station.gateways.modbus import ModbusSettings, serve
    from station.logs import set_up
    from station.settings import load_settings

    settings = load_settings(config, camera_override(camera))
    set_up(settings.log)
    gateway = settings.gateway
    asyncio.run(
        serve(
            gateway_address(settings, ctl, pub, "modbus"),
            ModbusSettings(
                host=host or gateway.modbus_host,
                port=gateway.modbus_port if port is None else port,
                deadline_ms=deadline_ms or gateway.deadline_ms,
                prefix=_prefix(prefix),
                camera=camera_prefix(settings, needed=True),
                allow_simulated=allow_simulated,
            ),
        )
    )


def _prefix(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise ConfigError(f"--prefix {text!r} is not a number of up to 8 hex digits")
    return value
