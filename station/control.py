"""What the bus asks of the station: triggers, status, pictures and the commands of admins.

Everything here is called in the bus thread and returns within a millisecond; what takes longer
(loading a recipe) runs in a thread of its own and answers when it is done.
"""

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

import structlog

from engines.errors import StationError, UsageError
from station.bus_types import AdminReply, TriggerReply
from station.inspection import Product, refuse
from station.lane import Lane
from station.ledger_types import Duplicate
from station.parts import Part
from station.schema import Opening, Reason, Scalar, StatusFacts, Verdict
from station.schema_ctl import AdminCommand, ModeCommand, RecipeCommand, Reset, Trigger
from station.wiring import first_mode, tune_cameras

if TYPE_CHECKING:
    from station.daemon import Daemon

log = structlog.get_logger("control")


class Control:
    """BusHandler of the daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        self._daemon = daemon
        self._prepared: dict[str, Product] | None = None
        self._previous: dict[str, Product] | None = None
        self._loading = threading.Lock()
        self._switching = False

    # -- triggers ----------------------------------------------------------------------------

    def on_trigger(self, command: Trigger, reply: TriggerReply) -> None:
        """busy or not_ready at once; else `accepted` when PENDING is durable, then the RESULT."""
        daemon = self._daemon
        ready, faults = daemon.readiness.evaluate()
        lane = self._lane_of(command)
        if not ready or lane is None or daemon.mode != "triggered":
            reply.not_ready(_why(faults, daemon.mode, lane))
            return
        if not daemon.flow.reserve():
            reply.busy()
            return
        product = daemon.products[lane.name]  # one look: a changeover may come at any moment
        try:
            opening = Opening(
                trigger_id=command.trigger_id,
                part_id=command.part_id,
                session=reply.session,
                received_ns=reply.received_ns,
                deadline_ms=command.deadline_ms or daemon.openings.deadline_ms(lane.name, product),
                t_trigger_us=time.time_ns() // 1000,
                **daemon.openings.shas(product),
            )
        except BaseException:
            daemon.flow.release()
            raise

        def opened(answer: Part | Duplicate | BaseException) -> None:
            if isinstance(answer, Part):
                reply.accepted(answer.part_id, answer.attempt)
                lane.triggers.put(answer)
                if lane.finished:
                    lane.leave_no_trigger("the source has ended")
            elif isinstance(answer, Duplicate):
                reply.duplicate()
            else:
                reply.not_ready(f"the ledger cannot be written: {answer}")

        daemon.flow.open(opening, product, lane.name, opened)

    def _lane_of(self, command: Trigger) -> Lane | None:
        """The camera that a trigger means: the only one, or the one its part id begins with."""
        lanes = self._daemon.lanes
        if len(lanes) == 1:
            return next(iter(lanes.values()))
        name = (command.part_id or "").partition("/")[0]
        return lanes.get(name)

    def trigger_now(self, lane: Lane) -> None:
        """A trigger of the station itself (interval). No room: the part is missed, and says so."""
        daemon = self._daemon
        room = daemon.flow.reserve()
        if not room:
            daemon.flow.force_reserve()

        def opened(answer: Part | Duplicate | BaseException) -> None:
            if not isinstance(answer, Part):
                return
            if room:
                lane.triggers.put(answer)
                if lane.finished:
                    lane.leave_no_trigger("the source has ended")
            else:
                text = "the part before was still being inspected"
                daemon.flow.commit(answer, refuse(Verdict.UNDECIDED, Reason.QUEUE_FULL, text))

        opening, product = daemon.openings.own(None, lane.name)
        daemon.flow.open(opening, product, lane.name, opened)

    # -- looking -----------------------------------------------------------------------------

    def status(self) -> StatusFacts:
        """See Daemon.status."""
        return self._daemon.status()

    def image(self, ref: str) -> tuple[dict[str, Scalar], bytes] | None:
        """Picture of a part, its media type in the header."""
        found = self._daemon.image(ref)
        if found is None:
            return None
        header: dict[str, Scalar] = {"media_type": found[0]}
        return header, found[1]

    # -- admins ------------------------------------------------------------------------------

    def on_admin(self, command: AdminCommand, reply: AdminReply) -> None:
        """RECIPE, MODE, RESET."""
        if not self._daemon.started:
            reply.refused("the station is starting: ask again when it has")
        elif isinstance(command, RecipeCommand):
            self._recipe(command, reply)
        elif isinstance(command, ModeCommand):
            self._set_mode(command.mode, reply)
        elif isinstance(command, Reset):
            ready, faults = self._daemon.reset()
            reply.done(ready=ready, faults="; ".join(faults)[:500])

    def _set_mode(self, mode: str, reply: AdminReply) -> None:
        """Durable first: a station that was stopped stays stopped after a restart."""
        daemon = self._daemon

        def kept(future: "Future[None]") -> None:
            if error := future.exception():
                reply.refused(f"the ledger cannot be written: {error}")
                return
            daemon.set_mode(mode)
            daemon.event("mode", "info", f"mode is now {mode}")
            reply.done(mode=mode)

        daemon.decided.keep_mode(first_mode(daemon), mode).add_done_callback(kept)

    def _recipe(self, command: RecipeCommand, reply: AdminReply) -> None:
        if command.action == "prepare":
            if command.recipe is None:
                reply.refused("prepare needs the name of a recipe")
            elif not self._loading.acquire(blocking=False):
                reply.refused("another recipe is being prepared")
            else:
                work = threading.Thread(
                    target=self._prepare,
                    args=(command.recipe, command.camera, reply),
                    name="prepare",
                    daemon=True,
                )
                work.start()
        elif command.camera is not None:
            reply.refused(
                "only prepare takes a camera: commit and rollback are of what it prepared"
            )
        elif self._daemon.flow.open_count and not command.force:
            reply.refused(f"{self._daemon.flow.open_count} parts are open: wait, or force")
        elif self._switching:
            reply.refused("another changeover is being made durable")
        elif command.action == "commit":
            prepared, self._prepared = self._prepared, None
            products = prepared and {**self._daemon.products, **prepared}
            self._switch(products, "nothing is prepared: send prepare first", reply)
        else:
            self._switch(self._previous, "there is no recipe to go back to", reply)

    def _meant(self, camera: str | None) -> list[str]:
        """The cameras of a changeover: the one that was named, else all, if they have one product.

        UsageError where that would be a guess: a part judged by another camera's recipe.
        """
        products = self._daemon.products
        has = ", ".join(f"{name}: {product.name}" for name, product in products.items() if name)
        if camera is None and len({product.name for product in products.values()}) > 1:
            raise UsageError(f"the cameras have different recipes ({has}): say for which it is")
        if camera is not None and camera not in products:
            raise UsageError(
                f"there is no camera {camera} here ({has or 'the only one has no name'})"
            )
        return list(products) if camera is None else [camera]

    def _prepare(self, name: str, camera: str | None, reply: AdminReply) -> None:
        """Load, self-test and warm the new product while the old one goes on inspecting."""
        start = time.monotonic()
        try:
            meant = self._meant(camera)
            product = self._daemon.room.product(name)
            self._prepared = dict.fromkeys(meant, product)
        except Exception as error:
            self._loading.release()  # before the answer: whoever reads it may ask again at once
            self._not_prepared(name, error, reply)
            return
        self._loading.release()
        took = (time.monotonic() - start) * 1000
        self._daemon.event("recipe_prepared", "info", f"recipe {name} is loaded in {took:.0f} ms")
        reply.done(recipe=name, recipe_sha=product.sha, ms=round(took, 1))

    def _not_prepared(self, name: str, error: Exception, reply: AdminReply) -> None:
        """Whatever it was, whoever asked must hear of it: the thread has nobody else to tell."""
        text = str(error)
        if not isinstance(error, StationError):
            log.error("prepare_failed", recipe=name, exc_info=error)
            text = f"{type(error).__name__}: {error}"
        self._daemon.event("recipe_refused", "warning", text[:500])
        reply.refused(text)

    def _switch(self, products: dict[str, Product] | None, missing: str, reply: AdminReply) -> None:
        """Every part opened from then on is of the new product: the part boundary is exact."""
        if products is None:
            reply.refused(missing)
            return
        start, daemon = time.monotonic(), self._daemon
        changed = {n: p for n, p in products.items() if p is not daemon.products.get(n)}
        first = next(iter((changed or products).values()))
        where = "" if len(products) == 1 else f" (cameras {', '.join(changed or products)})"

        def kept(future: "Future[None]") -> None:
            self._switching = False
            if error := future.exception():
                reply.refused(f"the ledger cannot be written: {error}; prepare anew")
                return
            tune_cameras(daemon, products)  # first: no frame of the old exposure is judged by it
            self._previous, daemon.products = daemon.products, products
            took = (time.monotonic() - start) * 1000
            daemon.event("recipe", "info", f"recipe is now {first.name or 'zero-shot'}{where}")
            reply.done(recipe=first.name, recipe_sha=first.sha, ms=round(took, 3))

        self._switching = True
        # Durable first: after a restart the station must judge by what it answered here.
        names = {lane: product.name or None for lane, product in products.items()}
        daemon.decided.keep_recipes(daemon.configured_recipes(), names).add_done_callback(kept)


def _why(faults: tuple[str, ...], mode: str, lane: Lane | None) -> str:
    if faults:
        return "; ".join(faults)
    if lane is None:
        return "no such camera: with several, a part id begins with the camera's name and /"
    return f"the station is in mode {mode}, not triggered"
