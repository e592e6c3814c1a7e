"""The command `station`. One place turns a StationError into a sentence and an exit code.

Exit codes: 0 ok, 1 internal, 2 usage, 3 configuration, 4 camera or source, 5 engine, 6 ledger,
7 verify mismatch, 8 recipe, 9 port or lock in use.
"""

import sys
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from engines.errors import StationError, UsageError
from station.cli_faults import (
    check_arguments,
    leave_stdout,
    pipe_closed,
    printable_output,
    unforeseen,
)
from station.lazy import Lazy, LazyGroup


class _Commands(LazyGroup):
    lazy: ClassVar[dict[str, Lazy]] = {
        "tail": Lazy("station.tail", "tail", "Print verdicts, words and events live."),
        "doctor": Lazy("station.doctor_cli", "app", "What can run here, and why not."),
        "ui": Lazy("station.ui.cli", "app", "The operator page, a program of its own."),
        "gateway": Lazy("station.gateways.cli", "app", "Modbus and OPC UA for the PLC."),
        "sim-plc": Lazy("station.simplc", "app", "A scripted PLC that scores the station."),
        "ctl": Lazy("station.ctl_cli", "app", "Changeover, mode, reset of a running station."),
        "keys": Lazy("station.keys_cli", "app", "Keys of the bus: new, list, revoke."),
        "ledger": Lazy("station.ledger_export", "ledger_app", "Export the journal."),
        "record": Lazy("station.record_cli", "app", "Record a source as MCAP."),
        "export": Lazy("station.archive_export_cli", "app", "Archived parts as a training set."),
        "reinspect": Lazy(
            "station.reinspect_cli", "reinspect", "Inspect archived pictures again, over all cores."
        ),
        "ask": Lazy("station.ask_cli", "app", "Ask the describer about a part."),
        "schema": Lazy("station.cli_tools", "schema", "JSON Schemas of every message."),
        "config": Lazy("station.cli_tools", "config", "The effective configuration as JSON."),
        "demo": Lazy("station.demo", "demo", "Enrol, run and compare with labels."),
    }


MIN_SPEED, MAX_SPEED = 0.001, 1e6  # of a replay: slower it stands still, faster it does not wait
app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Edge inspection station: frames in, verdicts and words out.",
)

Config = Annotated[Path | None, typer.Option("--config", help="station.toml to read.")]
Camera = Annotated[str | None, typer.Option(help="Camera number or /dev/v4l/by-id/...")]
SourceOption = Annotated[str | None, typer.Option(help="Folder, video, http:// or rtsp://.")]
RecipeOption = Annotated[str | None, typer.Option(help="The product; without it zero-shot.")]
LedgerOption = Annotated[Path | None, typer.Option(help="The durable journal.")]


@app.command()
def run(
    camera: Camera = None,
    source: SourceOption = None,
    recipe: RecipeOption = None,
    config: Config = None,
    trigger: Annotated[
        str | None, typer.Option(help="bus, interval or every_frame (default: by source).")
    ] = None,
    deadline_ms: Annotated[int | None, typer.Option(help="Per part; 0 = the recipe's.")] = None,
    fps: Annotated[float | None, typer.Option(help="Pace of a folder or video.")] = None,
    loop: Annotated[bool | None, typer.Option("--loop", help="Begin again at its end.")] = None,
    watch: Annotated[bool | None, typer.Option("--watch", help="Wait for new files.")] = None,
    bundle: Annotated[str | None, typer.Option(help="nano, or the path of a bundle.")] = None,
    ledger: LedgerOption = None,
    record: Annotated[
        str | None, typer.Option(help="all, or rejects (and one OK in record.every_ok): as MCAP.")
    ] = None,
) -> None:
    """Inspect: every frame or trigger becomes a part with one verdict."""
    from station.cli_run import overrides
    from station.cli_run import run as run_daemon
    from station.settings import load_settings

    given = overrides(
        source__spec=_spec(camera, source), recipe__name=recipe, trigger__by=trigger,
        trigger__deadline_ms=deadline_ms, source__fps=fps, source__loop=loop,
        source__watch=watch, engine__bundle=bundle, ledger__path=ledger,
        record__enabled=None if record is None else True,
        record__every_ok=1 if record == "all" else None,
    )  # fmt: skip
    if record not in (None, "all", "rejects"):
        raise UsageError(f"--record {record}: say all or rejects")
    if camera is not None and camera.isdigit():
        typer.echo(f"camera {camera}: numbers move; /dev/v4l/by-id/... stays", err=True)
    settings = load_settings(config, given)
    own = {c.recipe for c in settings.sources().values()} - {None, recipe}
    if recipe is not None and own:
        raise UsageError(
            f"--recipe {recipe}: station.toml gives a camera the recipe {', '.join(map(str, own))} "
            "(source.recipe): change it there"
        )
    raise typer.Exit(run_daemon(settings, config))


@app.command()
def replay(
    path: Annotated[Path, typer.Argument(help="A recording (.mcap), folder or video.")],
    recipe: RecipeOption = None,
    threshold: Annotated[float | None, typer.Option(help="Judge with this one instead.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare with the recording.")] = False,
    speed: Annotated[
        float, typer.Option(min=0.0, help="1 = as recorded, 2 = twice as fast, 0 = no waiting.")
    ] = 0.0,
    words: Annotated[bool, typer.Option("--words", help="Describe parts, too.")] = False,
    bundle: Annotated[str | None, typer.Option(help="nano, or the path of a bundle.")] = None,
    config: Config = None,
) -> None:
    """The same daemon over recorded frames: the same verdicts and scores every time."""
    from station.cli_run import overrides
    from station.replay import replay as replay_daemon
    from station.settings import load_settings

    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"--threshold {threshold:g}: say a score, between 0 and 1")
    if speed and not MIN_SPEED <= speed <= MAX_SPEED:
        raise UsageError(f"--speed {speed:g}: say 0, or {MIN_SPEED:g} to {MAX_SPEED:g}")
    given = overrides(recipe__name=recipe, engine__bundle=bundle)
    settings = load_settings(config, given)
    code = replay_daemon(
        settings,
        path,
        verify=verify,
        threshold=threshold,
        recipe=recipe,
        words=words,
        speed=speed,
    )
    raise typer.Exit(code)


@app.command()
def enroll(
    recipe: Annotated[str, typer.Option(help="Name of the recipe to make.")],
    normals: Annotated[str | None, typer.Option(help="Folder or video of good parts.")] = None,
    camera: Camera = None,
    count: Annotated[int, typer.Option(min=1, help="Frames to take from a camera.")] = 40,
    shots: Annotated[int | None, typer.Option(min=1, help="References to remember.")] = None,
    alpha: Annotated[float, typer.Option(help="False-reject rate to promise.")] = 0.05,
    defects: Annotated[Path | None, typer.Option(help="Folder of bad parts, to choose by.")] = None,
    noun: Annotated[str, typer.Option(help="What the part is called.")] = "object",
    phrase: Annotated[
        list[str] | None, typer.Option(help='A defect, e.g. "{} with a crack"; repeatable.')
    ] = None,
    region: Annotated[str | None, typer.Option(help="x,y,w,h of the part in the frame.")] = None,
    tiles: Annotated[str, typer.Option(help="ROWSxCOLS.")] = "1x1",
    overlap: Annotated[float, typer.Option(help="Of neighbouring tiles.")] = 0.1,
    mode: Annotated[str, typer.Option(help="auto, position, nearest or bank.")] = "auto",
    deadline_ms: Annotated[int, typer.Option(help="Per part, on the line.")] = 200,
    mm_per_px: Annotated[float | None, typer.Option(help="Scale of the frame.")] = None,
    bundle: Annotated[str | None, typer.Option(help="nano, or the path of a bundle.")] = None,
    config: Config = None,
) -> None:
    """Learn what a good part looks like; no defects are needed."""
    from station.cli_enroll import Wanted
    from station.cli_enroll import enroll as enroll_recipe
    from station.cli_run import overrides
    from station.settings import load_settings

    given = overrides(source__spec=_spec(camera, normals), engine__bundle=bundle)
    if not given.get("source"):
        raise UsageError("say where the good parts are: --normals FOLDER, or --camera 0")
    wanted = Wanted(
        name=recipe, count=count, shots=shots, alpha=alpha, defects=defects, noun=noun,
        phrases=tuple(phrase or ()), region=region, tiles=tiles, overlap=overlap, mode=mode,
        deadline_ms=deadline_ms, mm_per_px=mm_per_px,
    )  # fmt: skip
    enroll_recipe(load_settings(config, given), wanted)


@app.command()
def confirm(
    recipe: Annotated[str, typer.Option(help="The recipe that is still learning.")],
    normals: Annotated[Path, typer.Option(help="Parts that a person found good.")],
    yes: Annotated[
        bool, typer.Option(help="Take in parts unlike the others: a person has looked again.")
    ] = False,
    config: Config = None,
) -> None:
    """Add good parts that a person confirmed; ends learning once there are enough."""
    from station.cli_enroll import confirm as confirm_parts
    from station.settings import load_settings

    confirm_parts(load_settings(config), recipe, normals, sure=yes)


def _spec(camera: str | None, source: str | None) -> str | None:
    if camera is not None and source is not None:
        raise UsageError("give either a camera or a source, not both")
    return camera if camera is not None else source


def main(argv: list[str] | None = None) -> None:
    """Entry point: sentences instead of tracebacks, documented exit codes."""
    printable_output()
    sys.exit(_run(sys.argv[1:] if argv is None else argv))


def _call(argv: list[str]) -> int:
    check_arguments(argv)
    try:
        app(args=argv, prog_name="station")
    except SystemExit as end:  # typer's own: usage errors are 2, help is 0
        if pipe_closed(end):
            raise BrokenPipeError from None
        code = end.code if isinstance(end.code, int) else 0
    if sys.stdout is not None:  # a service may be started without one
        sys.stdout.flush()  # a full disk behind it is told here, not by the interpreter's exit
    return code


def _run(argv: list[str]) -> int:
    try:
        return _call(argv)
    except StationError as error:
        print(f"station: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        leave_stdout()  # the reader of a pipe has gone: no fault
        return 0
    except Exception as error:
        return unforeseen(error)


if __name__ == "__main__":
    main()
