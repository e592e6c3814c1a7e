"""`station gateway ...`: mounted by station.cli."""

import typer

from station.gateways import modbus_cli, opcua_cli

app = typer.Typer(help="Give verdicts to a PLC or SCADA system.", no_args_is_help=True)
app.add_typer(modbus_cli.app, name="modbus")
app.add_typer(opcua_cli.app, name="opcua")
