"""`station tail`: verdicts, words and events as they come; waits for a station that is not up."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from station.schema import Body, Desc, Event, Result, Status, Stream

_COLOURS = {"OK": "green", "NG": "red", "UNDECIDED": "yellow", "ERROR": "magenta"}
_SILENCE_S = 1.0  # three missed heartbeats of 200 ms, and some


def tail(
    config: Annotated[Path | None, typer.Option(help="station.toml to read.")] = None,
    ctl: Annotated[str | None, typer.Option(help="tcp://host:port of the ROUTER.")] = None,
    pub: Annotated[str | None, typer.Option(help="tcp://host:port of the PUB.")] = None,
    key: Annotated[Path | None, typer.Option(help="Key file of `station keys new`.")] = None,
    from_seq: Annotated[int | None, typer.Option(help="Begin with this result.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The bodies, one a line.")] = False,
    count: Annotated[int, typer.Option(help="Leave after so many results (0: never).")] = 0,
) -> None:
    """Print verdicts, words and events live; nothing is missed, whatever the network does."""
    from station.address import reach
    from station.client import Client
    from station.settings import load_settings

    bus = load_settings(config).bus
    since = None if from_seq is None else {"result": max(0, from_seq - 1), "desc": 0, "event": 0}
    streams = (Stream.RESULT, Stream.DESC, Stream.EVENT, Stream.STATUS)
    with Client(
        ctl or reach(bus.host, bus.ctl_port),
        pub or reach(bus.host, bus.pub_port),
        keys=key,
        name="tail",
    ) as client:
        Tail(as_json=as_json, count=count).follow(client.subscribe(streams, since, _SILENCE_S))


class Tail:
    """Prints bodies; knows whether the station was last seen ready, silent or not ready."""

    def __init__(self, *, as_json: bool, count: int) -> None:
        self._json = as_json
        self._count = count
        self._seen = 0
        self._state = ""

    def follow(self, bodies: object) -> None:
        """Until `count` results, or for ever. None among the bodies means silence."""
        for body in bodies:  # type: ignore[attr-defined]
            if body is None:
                self._say("no heartbeat: the station is not there (waiting)")
            elif isinstance(body, Status):
                self._status(body)
            else:
                self._body(body)
            if self._count and self._seen >= self._count:
                return

    def _status(self, status: Status) -> None:
        why = f": {'; '.join(status.faults)}" if status.faults else ""
        self._say(f"station {status.station} " + ("ready" if status.ready else f"NOT READY{why}"))

    def _say(self, state: str) -> None:
        """A change of state, to stderr, once."""
        if state != self._state:
            self._state = state
            typer.secho(f"-- {state}", err=True, dim=True)

    def _body(self, body: Body) -> None:
        self._seen += isinstance(body, Result)
        if self._json:
            typer.echo(json.dumps(body.model_dump(mode="json"), ensure_ascii=False))
            return
        if isinstance(body, Result):
            self._result(body)
        elif isinstance(body, Desc):
            where = f"{body.seq:>6} {'words':<9} {body.part_id}"
            typer.echo(f"{_clock(body.t_us)} {where}: {body.sentence} [{body.source}]")
            if body.contradiction:
                typer.secho(f"{'':>16} contradicts the map: {body.contradiction}", fg="yellow")
        elif isinstance(body, Event):
            typer.secho(f"{_clock(body.t_us)} {'event':>6} {body.kind}: {body.text}", dim=True)

    def _result(self, result: Result) -> None:
        score = "-" if result.score is None else f"{result.score:.4f}"
        limit = "-" if result.threshold is None else f"{result.threshold:.4f}"
        word = typer.style(f"{result.verdict:<9}", fg=_COLOURS[result.verdict], bold=True)
        took = max(0, result.t_done_us - result.t_trigger_us) / 1000
        late = " LATE" if result.late else ""
        again = f" (attempt {result.attempt})" if result.attempt > 1 else ""
        regions = f" {result.region_count} regions" if result.region_count else ""
        typer.echo(
            f"{_clock(result.t_done_us)} {result.seq:>6} {word} {result.part_id}{again} "
            f"{result.reason} score {score} limit {limit}{regions} {took:.1f} ms{late}"
        )


def _clock(t_us: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(t_us / 1e6))
