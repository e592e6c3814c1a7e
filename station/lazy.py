"""Commands that are imported when they are used: `station --help` costs no numpy and no zmq."""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_command_name

from engines.errors import UsageError


class Lazy(NamedTuple):
    """Where a command lives: `attr` of `module` is a Typer app or a function."""

    module: str
    attr: str
    help: str


class LazyGroup(TyperGroup):
    """A command group that knows names and one line of help before it imports anything."""

    lazy: Mapping[str, Lazy] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Declared order first, then the lazy ones."""
        return [*super().list_commands(ctx), *(n for n in self.lazy if n not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import the module of a lazy command; for help a stub with its line is enough."""
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in self.lazy:
            return found
        entry = self.lazy[cmd_name]
        if getattr(ctx, "resilient_parsing", False) or _only_help(ctx):
            return _stub(cmd_name, entry)
        return _load(cmd_name, entry)


def _only_help(ctx: Any) -> bool:
    """Whether this group's own help is being written (no sub-command was named)."""
    return not getattr(ctx, "_protected_args", None) and not ctx.args


def _stub(name: str, entry: Lazy) -> Any:
    import click

    return click.Command(name, help=entry.help, short_help=entry.help)


def _load(name: str, entry: Lazy) -> Any:
    try:
        target = getattr(importlib.import_module(entry.module), entry.attr)
    except ModuleNotFoundError as error:
        missing = error.name or "a module"
        if missing.split(".")[0] in ("station", "engines", "calibration", "export"):
            raise UsageError(f"station {name}: this build does not have it ({missing})") from None
        raise UsageError(
            f"station {name}: needs the package {missing!r}; install the matching extra"
        ) from None
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name or get_command_name(target.__name__))(target)
        target = app
    command = get_command(target)
    command.name = name
    return command
