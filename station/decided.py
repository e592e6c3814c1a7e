"""What was decided over the bus stays decided: recipe and mode outlive a restart.

They are kept in the ledger beside the configuration they changed. A configuration that says
something else than it did then is a newer decision, and wins.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from engines.errors import RecipeError
from station.ledger import Ledger

Names = Mapping[str, str | None]
"""Lane -> recipe, None for zero-shot."""
RECIPE, MODE = "decided_recipe", "decided_mode"
_READ_S = 10.0


class Decided:
    """Recipe and mode of this ledger's station; futures resolve when a decision is durable."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def recipes(self, configured: Names) -> Names:
        """The recipe of every lane: as decided under this very configuration, else as configured.

        LedgerError when the ledger cannot be read.
        """
        chosen = self._of(RECIPE, dict(configured))
        return chosen if isinstance(chosen, dict) and set(chosen) == set(configured) else configured

    def mode(self, configured: str) -> str:
        """The mode, likewise."""
        chosen = self._of(MODE, configured)
        return chosen if isinstance(chosen, str) else configured

    def keep_recipes(self, configured: Names, chosen: Names) -> "Future[None]":
        """Recipes were committed."""
        return self._keep(RECIPE, dict(configured), dict(chosen))

    def keep_mode(self, configured: str, chosen: str) -> "Future[None]":
        """The mode was set."""
        return self._keep(MODE, configured, chosen)

    def _keep(self, key: str, configured: object, chosen: object) -> "Future[None]":
        return self._ledger.remember(key, json.dumps({"over": configured, "chosen": chosen}))

    def _of(self, key: str, configured: object) -> Any:
        kept = self._ledger.recall(key).result(_READ_S)
        if not kept:
            return None
        record = json.loads(kept)
        if record["over"] != configured:  # never to come back when the old name does
            self._forget(key)
            return None
        return record["chosen"]

    def _forget(self, key: str) -> None:
        self._ledger.remember(key, "").result(_READ_S)

    @contextlib.contextmanager
    def trusted(self, names: Names, configured: Names) -> Iterator[None]:
        """Recipes are opened inside; a decision whose recipe cannot be is told and forgotten."""
        try:
            yield
        except RecipeError as error:
            if dict(names) == dict(configured):
                raise
            self._forget(RECIPE)
            raise RecipeError(
                f"{error} (it was committed over the bus; that is forgotten now, so that the next "
                f"start is by the configuration: {', '.join(map(str, configured.values()))})"
            ) from error
