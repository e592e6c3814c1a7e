"""What all gateways share on the command line: whom to talk to, and the log."""

from typing import Any

from engines.errors import ConfigError
from station.address import reach
from station.gateways.link_io import StationAddress
from station.settings import Settings


def gateway_address(
    settings: Settings, ctl: str | None, pub: str | None, client: str
) -> StationAddress:
    """The station of station.toml, with the addresses of the command line where given."""
    bus = settings.bus
    return StationAddress(
        ctl=ctl or reach(bus.host, bus.ctl_port),
        pub=pub or reach(bus.host, bus.pub_port),
        line=settings.station.line,
        station=settings.station.name,
        keys=settings.gateway.key,
        client=client,
    )


def camera_override(camera: str | None) -> dict[str, Any]:
    """What --camera says, for `load_settings`."""
    return {} if camera is None else {"gateway": {"camera": camera}}


def camera_prefix(settings: Settings, *, needed: bool) -> str:
    """What part ids begin with: "NAME/" of `gateway.camera`, "" without one.

    ConfigError when the station has no such camera, and, where the PLC cannot write a part id
    itself (`needed`), when it has several and none is named: every part would be refused.
    """
    name, cameras = settings.gateway.camera, list(settings.cameras)
    if name is None and needed and len(cameras) > 1:
        raise ConfigError(
            f"the station has the cameras {', '.join(cameras)}: say in gateway.camera which of "
            "them this gateway triggers (one gateway for each, on a port of its own)"
        )
    if name is not None and cameras and name not in cameras:
        raise ConfigError(
            f"gateway.camera = {name!r}: the station's cameras are {', '.join(cameras)}"
        )
    return "" if name is None else f"{name}/"


def log() -> Any:
    """The structured log (stderr)."""
    import structlog

    return structlog.get_logger("gateway")
