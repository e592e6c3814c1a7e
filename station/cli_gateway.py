"""`station gateway modbus|opcua`: programs of their own that speak only ISP/1."""

from typing import ClassVar

import typer

from station.lazy import Lazy, LazyGroup


class _Gateways(LazyGroup):
    lazy: ClassVar[dict[str, Lazy]] = {
        "modbus": Lazy("station.gateways.modbus_cli", "app", "Modbus TCP registers."),
        "opcua": Lazy("station.gateways.opcua_cli", "app", "An OPC UA server."),
    }


app = typer.Typer(cls=_Gateways, add_completion=False, no_args_is_help=True, help="Gateways to the PLC.")


@app.callback()
def gateway() -> None:
    """Gateways to the PLC."""
