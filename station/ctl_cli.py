"""`station ctl`: the commands of an admin, changeover, mode and reset, from a shell.

Exit codes as everywhere: 0 done, 2 the key may not, 8 the recipe was refused, 1 anything else that
was not done or not answered (docs/integrator.md).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from engines.errors import RecipeError, StationError, UsageError

if TYPE_CHECKING:
    from station.schema_ctl import Reply

app = typer.Typer(no_args_is_help=True, help="Changeover, mode and reset of a running station.")
recipe_app = typer.Typer(no_args_is_help=True, help="Change the product that is inspected.")
app.add_typer(recipe_app, name="recipe")

Config = Annotated[Path | None, typer.Option("--config", help="station.toml to read.")]
Ctl = Annotated[str | None, typer.Option("--ctl", help="The station's ROUTER, tcp://host:port.")]
Key = Annotated[Path | None, typer.Option("--key", help="Key file of an admin (CURVE).")]
Force = Annotated[bool, typer.Option("--force", help="Although parts are open.")]
QUICK_S = 10.0


@recipe_app.command("prepare")
def prepare(
    name: Annotated[str, typer.Argument(help="The recipe to load.")],
    camera: Annotated[str | None, typer.Option(help="Of several with different recipes.")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.1, help="Loading may take long.")] = 120.0,
    config: Config = None,
    ctl: Ctl = None,
    key: Key = None,
) -> None:
    """Load, self-test and warm a recipe while the old one goes on inspecting."""
    fields = {"action": "prepare", "recipe": name}
    fields |= {} if camera is None else {"camera": camera}
    _told(_ask("RECIPE", config, ctl, key, timeout_s, **fields))


@recipe_app.command("commit")
def commit(force: Force = False, config: Config = None, ctl: Ctl = None, key: Key = None) -> None:
    """Inspect by what was prepared, from the next part on."""
    _told(_ask("RECIPE", config, ctl, key, QUICK_S, action="commit", force=force))


@recipe_app.command("rollback")
def rollback(force: Force = False, config: Config = None, ctl: Ctl = None, key: Key = None) -> None:
    """Inspect by what was there before the last commit."""
    _told(_ask("RECIPE", config, ctl, key, QUICK_S, action="rollback", force=force))


@app.command("mode")
def mode(
    to: Annotated[Literal["triggered", "free_run", "stopped"], typer.Argument()],
    config: Config = None,
    ctl: Ctl = None,
    key: Key = None,
) -> None:
    """Wait for triggers, judge every frame, or stop inspecting (NOT READY)."""
    _told(_ask("MODE", config, ctl, key, QUICK_S, mode=to))


@app.command("reset")
def reset(config: Config = None, ctl: Ctl = None, key: Key = None) -> None:
    """Say that a person has looked at the faults; the station looks again."""
    _told(_ask("RESET", config, ctl, key, QUICK_S))


def _ask(
    cmd: str, config: Path | None, ctl: str | None, key: Path | None, timeout_s: float, **f: object
) -> "Reply":
    """The station's `done`; StationError with one sentence for everything else."""
    from station.address import reach
    from station.client import Client, NoAnswer, Refused
    from station.schema_ctl import Kind
    from station.settings import load_settings

    bus = load_settings(config).bus
    address = ctl or reach(bus.host, bus.ctl_port)
    with Client(address, keys=key, name="ctl") as client:
        try:
            client.hello()
            return client.admin(cmd, timeout_s, **f)
        except NoAnswer as error:
            hint = " and what its key file is (--key)" if key is None else ""
            raise StationError(
                f"{error} from {address}: look whether the station runs (`station doctor`){hint}"
            ) from None
        except Refused as error:
            text = error.reply.text or str(error.reply.reply)
            if error.reply.reply is Kind.DENIED:
                raise UsageError(
                    f"the station denied it ({text}): {cmd} needs the key of an admin"
                ) from None
            raise (RecipeError if cmd == "RECIPE" else StationError)(
                f"the station did not do it: {text}"
            ) from None


def _told(reply: "Reply") -> None:
    facts = ", ".join(f"{name} {value}" for name, value in (reply.data or {}).items())
    typer.echo(f"done: {facts}" if facts else "done")
