"""Commands that are imported when they are used: `station --help` costs no numpy and no zmq."""

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_command_name

from engines.errors import UsageError


class Lazy(NamedTuple):
    """Where a command lives: `attr` of `module` is a Typer app or a function."""

    module: str
    attr: str
    help: str


class LazyGroup(TyperGroup):
    """A command group that knows names and one line of help before it imports anything."""

    lazy: ClassVar[Mapping[str, Lazy]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Declared order first, then the lazy ones."""
        return [*super().list_commands(ctx), *(n for n in self.lazy if n not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """For help a stub with one line; `resolve_command` asks for the real one."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in self.lazy:
            entry = self.lazy[cmd_name]
            return TyperCommand(cmd_name, help=entry.help, short_help=entry.help)
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that was named is imported here."""
        name, command, rest = super().resolve_command(ctx, args)
        if name and name in self.lazy and name not in self.commands:
            command = _load(name, self.lazy[name])
        return name, command, rest


def _load(name: str, entry: Lazy) -> Any:
    from station.logs import set_up
    from station.settings import LogSettings

    set_up(LogSettings())  # stderr; stdout belongs to what the command prints
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
