"""What was decided over the bus stays decided: recipe and mode outlive a restart.

They are kept in the ledger beside the configuration they changed. A configuration that says
something else than it did then is a newer decision, and wins.
"""

import json
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

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
        if kept is None:
            return None
        record = json.loads(kept)
        return record["chosen"] if record["over"] == configured else None
