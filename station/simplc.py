"""`station sim-plc`: a scripted line that runs against a station and scores every part."""

import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from engines.errors import ConfigError, StationError, VerifyMismatch

if TYPE_CHECKING:
    from station.gateways.link_io import StationAddress
    from station.settings import Settings
    from station.simplc_drive import Driver
    from station.simplc_score import PlcLog, Score
    from station.simplc_script import Script

app = typer.Typer(help="A scripted PLC that runs a line against a station and scores it.")


@app.callback(invoke_without_command=True)
def sim_plc(
    config: Annotated[Path | None, typer.Option(help="station.toml: whom to talk to.")] = None,
    script: Annotated[Path | None, typer.Option(help="TOML of the run; options win.")] = None,
    by: Annotated[str, typer.Option(help="isp or modbus.")] = "isp",
    parts: Annotated[int | None, typer.Option(help="How many parts.")] = None,
    takt_ms: Annotated[float | None, typer.Option(help="Time between parts; 0: at once.")] = None,
    jitter_ms: Annotated[float | None, typer.Option(help="Uniform, +-.")] = None,
    deadline_ms: Annotated[int | None, typer.Option(help="Per part.")] = None,
    faults: Annotated[
        str | None, typer.Option(help="repeat=.01,burst=.01,vanish=.01,noise=.01")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of jitter and faults.")] = None,
    first_id: Annotated[int | None, typer.Option(help="Trigger number of the first part.")] = None,
    log: Annotated[Path | None, typer.Option(help="The PLC's log, JSON lines.")] = None,
    host: Annotated[str | None, typer.Option(help="Modbus gateway's host.")] = None,
    port: Annotated[int | None, typer.Option(help="Modbus gateway's port.")] = None,
    ctl: Annotated[str | None, typer.Option(help="The station's ROUTER, tcp://host:port.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key file of a gateway (CURVE).")] = None,
    camera: Annotated[
        str | None, typer.Option(help="Of several: whose parts (gateway.camera).")
    ] = None,
    wait_s: Annotated[float, typer.Option(help="For READY at the start.")] = 30.0,
    allow_missing: Annotated[
        bool, typer.Option(help="Unanswered parts do not fail the run (stations are killed).")
    ] = False,
    no_check: Annotated[bool, typer.Option(help="Do not compare with the ledger.")] = False,
) -> None:
    """Run parts against the station; exit 7 if one verdict was wrong, lost, doubled or missing."""
    from station.gateways.options import camera_override, camera_prefix
    from station.settings import load_settings
    from station.simplc_line import run_line
    from station.simplc_score import PlcLog
    from station.simplc_script import load_script, parse_faults, plan

    settings = load_settings(config, camera_override(camera))
    name = camera_prefix(settings, needed=True) + (f"{by}-" if by == "isp" else "")
    run = load_script(
        script,
        parts=parts,
        takt_ms=takt_ms,
        jitter_ms=jitter_ms,
        deadline_ms=deadline_ms,
        seed=seed,
        first_id=first_id,
        faults=parse_faults(faults),
    )
    address, book = _address(settings, ctl, key), PlcLog(log)
    driver = _driver(by, address, settings, run, host, port)
    try:
        driver.open(wait_s)
        with _stop_by_hand() as stopped:
            run_line(run, plan(run), driver, book, name=name, stopped=stopped)
    except KeyboardInterrupt:
        typer.echo("stopped by hand: scoring what was run", err=True)
    finally:
        driver.close()
        book.close()
    _judge(_scored(book, None if no_check else address, run, by), allow_missing=allow_missing)


def _scored(book: "PlcLog", compare: "StationAddress | None", run: "Script", by: str) -> "Score":
    """The score sheet, printed; compared with the ledger of a station unless None."""
    from station.simplc_score import tally

    score = tally(book.rows)
    if compare is not None:
        _check(score, book, compare)
    _print(score, run, by)
    return score


@contextmanager
def _stop_by_hand() -> Iterator[Callable[[], bool]]:
    """Whether somebody pressed Ctrl-C; a second time interrupts at once.

    A KeyboardInterrupt is raised wherever the program happens to be, and where that is a callback
    or a finaliser of a library it is swallowed: the line would run on for ever.
    """
    pressed: list[int] = []

    def press(signum: int, _frame: object) -> None:
        pressed.append(signum)
        if len(pressed) > 1:
            raise KeyboardInterrupt
        typer.echo("stopped by hand: scoring what was run", err=True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _address(settings: "Settings", ctl: str | None, key: Path | None) -> "StationAddress":
    from dataclasses import replace

    from station.gateways.options import gateway_address

    address = gateway_address(settings, ctl, None, "sim-plc")
    return address if key is None else replace(address, keys=key)


def _driver(
    by: str,
    address: "StationAddress",
    settings: "Settings",
    run: "Script",
    host: str | None,
    port: int | None,
) -> "Driver":
    if by == "isp":
        from station.simplc_isp import IspDriver

        return IspDriver(
            address,
            prefix=secrets.randbits(31),  # the top bit marks the second part of a burst
            deadline_ms=run.deadline_ms,
            margin_ms=run.margin_ms,
        )
    if by == "modbus":
        from station.simplc_modbus import ModbusDriver

        gateway = settings.gateway
        return ModbusDriver(
            host or gateway.modbus_host,
            gateway.modbus_port if port is None else port,
            deadline_ms=run.deadline_ms,
            margin_ms=run.margin_ms,
        )
    raise ConfigError(f"--by {by!r} is neither isp nor modbus")


def _check(score: "Score", book: "PlcLog", address: "StationAddress") -> None:
    """Fetch the ledger's results and compare."""
    from station.client import Client, NoAnswer, Refused
    from station.simplc_score import reconcile

    with Client(address.ctl, keys=address.keys, name="sim-plc-check", timeout_s=10.0) as client:
        try:
            reconcile(score, book.rows, client.fetch_all("result"))
        except (NoAnswer, Refused) as error:
            raise StationError(
                f"the ledger behind {address.ctl} cannot be fetched ({error}); "
                "--no-check scores without it"
            ) from None


def _print(score: "Score", run: "Script", by: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"sim-plc over {by}: {run.parts} parts, takt {run.takt_ms:g} ms")
    table.add_column("what")
    table.add_column("count", justify="right")
    for counter in (score.verdicts, score.refusals):
        for name, count in sorted(counter.items()):
            table.add_row(name, str(count))
    table.add_row("no answer in time", str(score.states["missing"]))
    table.add_row("line had moved on", str(score.states["missed"]))
    table.add_row("let pass", str(score.passed), style="green")
    for name in ("false_ok", "wrong", "doubled", "lost", "disordered", "broken"):
        found = getattr(score, name)
        table.add_row(name, str(len(found)), style="red" if found else None)
    table.add_row("compared with the ledger", "no" if score.checked is None else str(score.checked))
    Console().print(table)
    if score.milliseconds:
        times = sorted(score.milliseconds)
        typer.echo(
            "trigger to verdict: "
            + ", ".join(
                f"p{q:g} {times[min(len(times) - 1, int(len(times) * q / 100))]:.2f} ms"
                for q in (50, 95, 99, 99.9)
            )
        )


def _judge(score: "Score", *, allow_missing: bool) -> None:
    if score.lies:
        raise VerifyMismatch(
            f"the station broke its promise {score.lies} times (see the table and the PLC log)"
        )
    if score.unanswered and not allow_missing:
        raise VerifyMismatch(
            f"{score.unanswered} parts had no verdict and were rejected; --allow-missing accepts "
            "that where stations are stopped on purpose"
        )
