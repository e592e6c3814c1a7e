"""The command `station record`: frames of a source into an MCAP file, without inspecting them."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from engines.errors import LedgerError, UsageError
from station.record_mcap import McapFile
from station.record_recover import recover_file
from station.record_stream import SyncedStream
from station.sources.base import EndOfSource, Source

app = typer.Typer(add_completion=False)
WAIT_S = 0.25


@dataclass(frozen=True)
class RecordReport:
    """What was written."""

    path: Path
    frames: int
    faults: int
    bytes: int


def record(
    source: Source, out: Path, seconds: float | None, identity: dict[str, str]
) -> RecordReport:
    """Record until the source ends, `seconds` passed, or Ctrl-C. The source is opened here.

    Raises UsageError (`out` exists), SourceError, LedgerError (the disk failed).
    """
    _make_whole(out)
    if out.exists():
        raise UsageError(f"{out}: exists already; name another file")
    source.open()
    frames = faults = 0
    end = None if seconds is None else time.monotonic() + seconds
    try:
        file = McapFile(SyncedStream(out), identity)
        try:
            while end is None or time.monotonic() < end:
                frame = source.read(WAIT_S)
                if frame is not None:
                    frames += 1
                    faults += frame.fault is not None
                    file.image(frame, seq=frames)
                if file.sync_due():
                    file.sync()
        except (EndOfSource, KeyboardInterrupt):
            pass  # both are the ordinary end of a recording
        file.finish()
    except OSError as error:
        text = f"{out}: {error.strerror or error}; what was written is in {out}.part"
        raise LedgerError(text) from None
    finally:
        source.close()
    return RecordReport(out, frames, faults, out.stat().st_size)


def _make_whole(out: Path) -> None:
    """A recording of this name that was killed becomes a file of its own, never overwritten.

    Raises UsageError when there was one with anything in it, or one that is still being written.
    """
    part = out.with_name(out.name + ".part")
    if not part.exists():
        return
    if out.exists():
        raise UsageError(f"{out} and {part.name} exist already; name another file")
    try:
        found = recover_file(part)
    except OSError as error:
        raise UsageError(f"{part}: {error.strerror or error}; name another file") from None
    if found.path or found.damaged:
        raise UsageError(f"a recording that was killed lay there ({found}); name another file")


@app.callback(invoke_without_command=True)
def main(
    out: Annotated[Path, typer.Option(help="File to write, ending in .mcap.")],
    camera: Annotated[str | None, typer.Option(help="Camera number or device.")] = None,
    source: Annotated[str | None, typer.Option(help="Folder, video, http:// or rtsp://.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Stop after this time.")] = None,
    config: Annotated[Path | None, typer.Option(help="station.toml to read.")] = None,
) -> None:
    """Record frames without inspecting them; replay the file with `station replay`."""
    from station.settings import load_settings
    from station.sources.base import open_source

    if camera is not None and source is not None:
        raise UsageError("give either --camera or --source, not both")
    if seconds is not None and not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds {seconds:g}: say more than 0")
    settings = load_settings(config)
    spec = camera or source or settings.source.spec
    identity = {"line": settings.station.line, "station": settings.station.name, "source": spec}
    report = record(
        open_source(spec, settings.source.model_copy(update={"spec": spec})),
        out,
        seconds,
        identity,
    )
    typer.echo(f"{report.frames} frames, {report.bytes / 2**20:.1f} MiB in {report.path}")
    if report.faults:
        typer.echo(f"{report.faults} of them faulty", err=True)
