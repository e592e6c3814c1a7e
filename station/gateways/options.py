"""What all gateways share on the command line: whom to talk to, and the log."""

from typing import Any

from station.gateways.link_io import StationAddress
from station.settings import Settings


def gateway_address(
    settings: Settings, ctl: str | None, pub: str | None, client: str
) -> StationAddress:
    """The station of station.toml, with the addresses of the command line where given."""
    bus = settings.bus
    return StationAddress(
        ctl=ctl or f"tcp://{bus.host}:{bus.ctl_port}",
        pub=pub or f"tcp://{bus.host}:{bus.pub_port}",
        line=settings.station.line,
        station=settings.station.name,
        keys=settings.gateway.key,
        client=client,
    )


def log() -> Any:
    """The structured log (stderr)."""
    import structlog

    return structlog.get_logger("gateway")
