"""What a part begins with: ids, deadline, and the hashes of all that decides its verdict."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from station.inspection import Product
from station.schema import Opening, new_id
from station.sources.base import Frame
from station.wiring import product_of

if TYPE_CHECKING:
    from station.daemon import Daemon

_FILE_DEADLINE_MS = 10_000  # nobody waits at a folder: its deadline only catches a hanging engine
_REPLAY_DEADLINE_MS = 600_000  # the injected clock stands still while the engine thinks
_DEFAULT_DEADLINE_MS = 1000


class Openings:
    """Reads the daemon's products, mode and options; in a replay it changes over, too."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._made: dict[str, Product] = {}

    def own(self, frame: Frame | None, lane: str) -> tuple[Opening, Product]:
        """The Opening of a part that the station itself begins, and the product that judges it.

        Both of one moment: a changeover may come between any two looks at the products.

        RecipeError: a recording's recipe is not there any more.
        """
        if frame is not None and self._daemon.options.recipe_of is not None:
            self._follow(lane, self._daemon.options.recipe_of(frame))
        tags = frame.tags if frame else {}
        name = tags.get("part_id") or (Path(frame.name).stem if frame else None)
        if name and lane:
            name = f"{lane}/{name}"
        product = self._daemon.products[lane]
        opening = Opening(
            trigger_id=new_id(),
            part_id=_legal(name) if name else None,
            received_ns=time.monotonic_ns(),
            deadline_ms=self.deadline_ms(lane, product),
            t_trigger_us=time.time_ns() // 1000,
            **self.shas(product),
        )
        return opening, product

    def _follow(self, lane: str, recipe: str | None) -> None:
        """Change over where the recording did; None: a part without a recorded verdict."""
        daemon, now = self._daemon, self._daemon.products[lane]
        self._made.setdefault(now.name, now)
        if recipe is None or recipe == now.name:
            return
        if recipe not in self._made:
            self._made[recipe] = product_of(daemon, recipe or None)
        daemon.products = {**daemon.products, lane: self._made[recipe]}

    def shas(self, product: Product) -> dict[str, Any]:
        """The fields of an Opening that name recipe, bundle and configuration."""
        return {
            "simulated": self._daemon.options.simulated,
            "threshold": product.threshold,
            "recipe": product.name,
            "recipe_sha": product.sha,
            "bundle_sha": product.bundle_sha,
            "config_sha": self._daemon.config_sha,
        }

    def deadline_ms(self, lane: str, product: Product) -> int:
        """Of the settings, else of the recipe; files and replays have nobody who waits."""
        if self._daemon.options.simulated:
            return _REPLAY_DEADLINE_MS
        if self._daemon.settings.trigger.deadline_ms:
            return self._daemon.settings.trigger.deadline_ms
        if not self._daemon.lanes[lane].source.live and self._daemon.mode != "triggered":
            return _FILE_DEADLINE_MS
        loaded = product.loaded
        return loaded.recipe.deadline_ms if loaded else _DEFAULT_DEADLINE_MS


def _legal(name: str) -> str:
    """A part id: no control characters, at most 128."""
    return "".join(c if c.isprintable() else "_" for c in name)[:128]
