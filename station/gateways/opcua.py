"""`station gateway opcua`: the station as an OPC UA server (asyncua).

    Objects/InspectionStation
        Line Station Ready Link Fault Heartbeat        variables, written every 100 ms
        Inspect(PartId, TriggerId, DeadlineMs)         triggers and answers for this very part
        ResultManagement/GetResultById(ResultId)       a result of this gateway's memory
        event ResultReadyEventType                     every result of the station, in order

Names follow OPC 40001-101; conformance is not claimed. A client passes a part only if
ResultEvaluation is 1 (OK) in the answer to its own call, or in the event with its own PartId.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from engines.errors import ConfigError, InUseError, StationError
from station.gateways.bridge import GRACE_S, REFUSED_CODES
from station.gateways.handshake import Health
from station.gateways.link import StationLink
from station.gateways.link_io import StationAddress
from station.gateways.opcua_limits import MAX_EVENTS, transport_limits
from station.gateways.opcua_model import (
    EVENT_FIELDS,
    NAMESPACE,
    Evaluation,
    ResultView,
    lawful,
    refusal_details,
    view,
)
from station.gateways.opcua_security import Users, certificate, user_manager
from station.gateways.registers import Code
from station.gateways.watch import ResultWatch
from station.schema import Result, hex64
from station.schema_ctl import Kind

log = logging.getLogger("station.gateways.opcua")

REMEMBERED = 10_000  # results GetResultById can answer; older ones are in the station's ledger
CYCLE_S = 0.1
APPLICATION_URI = "urn:inspection-station:gateway"
GOOD, BAD_NOT_FOUND = 0, -1
Answer = tuple[str, int, int, str]  # ResultId, ResultEvaluation, ...Code, ...Details


@dataclass(frozen=True, slots=True)
class OpcuaSettings:
    """Where to listen, who may connect, how long a part may take. `pki` None: no encryption."""

    endpoint: str
    deadline_ms: int
    users: Path | None = None
    pki: Path | None = None
    insecure: bool = False
    camera: str = ""  # what part ids begin with, see options.camera_prefix
    allow_simulated: bool = False


class OpcuaGateway:
    """The OPC UA server, the link that triggers and the watch that sees every result."""

    def __init__(
        self,
        address: StationAddress,
        settings: OpcuaSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _refuse_open_door(settings)
        self._clock = clock
        self.address, self.settings = address, settings
        self.prefix = secrets.randbits(32)
        self.health = Health()
        self._users = None if settings.users is None else Users(settings.users)  # may raise
        self.link = StationLink(address, self)  # opens sockets, which would keep the process
        self._watch = ResultWatch(address, self._watched)
        self._results: OrderedDict[str, ResultView] = OrderedDict()
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._events: asyncio.Queue[ResultView] = asyncio.Queue()
        self._beat = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._server: Any = None

    async def start(self) -> None:
        """Build the address space, listen and connect. InUseError when the port is taken."""
        self._loop = asyncio.get_running_loop()
        self._server = await _server(self.settings, self._users)
        await self._build()
        try:
            await self._server.start()
        except OSError as error:
            raise InUseError(
                f"OPC UA cannot listen on {self.settings.endpoint} ({error.strerror}); "
                "choose another gateway.opcua_endpoint or end the program that holds it"
            ) from None
        self.link.start()
        self._watch.start()
        self._tasks = [asyncio.create_task(self._cycle()), asyncio.create_task(self._emit())]

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`; StationError if a part of the gateway ended by itself."""
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.2)
            ended = [task.exception() for task in self._tasks if task.done()]
            if self.link.failed is not None or ended:
                raise StationError(
                    f"the OPC UA gateway ended unexpectedly ({self.link.failed or ended[0]!r}); "
                    "restart it and report this"
                )

    async def close(self) -> None:
        """Close every session and end the threads."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.stop()
        await asyncio.to_thread(self._watch.stop)
        await asyncio.to_thread(self.link.stop)

    @property
    def ready(self) -> bool:
        """Whether a part would be taken now, and its event would not be missed."""
        return self.health.link and self.health.ready and self._watch.begun.is_set()

    async def _build(self) -> None:
        from asyncua import ua

        server = self._server
        index = await server.register_namespace(NAMESPACE)
        root = await server.nodes.objects.add_object(index, "InspectionStation")
        await root.add_variable(index, "Line", self.address.line)
        await root.add_variable(index, "Station", self.address.station)
        kinds = dict.fromkeys(("Ready", "Link", "Fault"), ua.VariantType.Boolean)
        kinds["Heartbeat"] = ua.VariantType.UInt32
        self._cyclic = {
            name: (await root.add_variable(index, name, 0, kind), kind)
            for name, kind in kinds.items()
        }
        text, u32 = ua.VariantType.String, ua.VariantType.UInt32
        i32, i64 = ua.VariantType.Int32, ua.VariantType.Int64
        await root.add_method(
            index, "Inspect", self._inspect, [text, u32, u32], [text, i32, i64, text]
        )
        management = await root.add_object(index, "ResultManagement")
        outs = [getattr(ua.VariantType, kind) for kind in EVENT_FIELDS.values()]
        await management.add_method(index, "GetResultById", self._by_id, [text], [i32, *outs])
        fields = [(name, getattr(ua.VariantType, kind)) for name, kind in EVENT_FIELDS.items()]
        kind = await server.create_custom_event_type(
            index, "ResultReadyEventType", properties=fields
        )
        self._generator = await server.get_event_generator(kind, root)

    async def _inspect(self, _parent: Any, part: Any, trigger: Any, deadline: Any) -> list[Any]:
        """The method Inspect: one part from trigger to verdict, paired by its own trigger id."""
        from asyncua import ua

        answer = await self.inspect(part.Value, trigger.Value, deadline.Value)
        kinds = (
            ua.VariantType.String,
            ua.VariantType.Int32,
            ua.VariantType.Int64,
            ua.VariantType.String,
        )
        return [ua.Variant(v, kind) for v, kind in zip(answer, kinds, strict=True)]

    async def inspect(self, part_id: str | None, trigger: int, deadline_ms: int) -> Answer:
        """Trigger a part and wait for its verdict; anything else is UNDEFINED with a reason."""
        trigger_id = hex64(self.prefix << 32 | trigger)
        if trigger == 0 or trigger_id in self._waiting:
            return self._refuse(trigger_id, Code.BAD_ID if trigger == 0 else Code.DUPLICATE)
        if not self.ready:
            return self._refuse(trigger_id, Code.NOT_READY if self.health.link else Code.LINK_LOST)
        deadline_ms = deadline_ms or self.settings.deadline_ms
        part_id = f"{self.settings.camera}{part_id or trigger}"
        if not lawful(trigger_id, part_id, deadline_ms):
            return self._refuse(trigger_id, Code.BAD_ID)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[trigger_id] = future
        wait_s = deadline_ms / 1000 + GRACE_S
        until = self._clock() + wait_s
        try:
            self.link.trigger(trigger_id, part_id, deadline_ms)
            answer = await asyncio.wait_for(future, wait_s)
        except TimeoutError:
            return self._refuse(trigger_id, Code.NO_ANSWER)
        finally:
            del self._waiting[trigger_id]
        # After a stopped process or a paused machine the answer can meet the loop before the
        # timer does: what comes after the time limit is none.
        return answer if self._clock() <= until else self._refuse(trigger_id, Code.NO_ANSWER)

    async def _by_id(self, _parent: Any, result_id: Any) -> list[Any]:
        """The method GetResultById: Error 0 and the fields, or -1 and empty fields."""
        from asyncua import ua

        found = self._results.get(result_id.Value)
        values = [ua.Variant(GOOD if found else BAD_NOT_FOUND, ua.VariantType.Int32)]
        for name, kind in EVENT_FIELDS.items():
            value = found.fields[name] if found else None
            values.append(_variant(value, getattr(ua.VariantType, kind)))
        return values

    def _refuse(self, trigger_id: str, code: Code) -> Answer:
        name = f"{self.address.line}/{self.address.station}/{trigger_id}"
        return name, int(Evaluation.UNDEFINED), int(code), refusal_details(code)

    # --- called in the link's and the watch's threads -------------------------------------------
    def on_health(self, health: Health) -> None:
        """From the link: see LinkListener."""
        self._loop.call_soon_threadsafe(self._set_health, health)

    def on_result(self, result: Result) -> None:
        """From the link: see LinkListener."""
        fields = view(result, allow_simulated=self.settings.allow_simulated).fields
        answer = (
            fields["ResultId"],
            fields["ResultEvaluation"],
            fields["ResultEvaluationCode"],
            fields["ResultEvaluationDetails"],
        )
        self._loop.call_soon_threadsafe(self._resolve, result.trigger_id, answer)

    def on_refusal(self, trigger_id: str, kind: Kind) -> None:
        """From the link: see LinkListener."""
        answer = self._refuse(trigger_id, REFUSED_CODES.get(kind, Code.UNKNOWN))
        self._loop.call_soon_threadsafe(self._resolve, trigger_id, answer)

    def on_tick(self) -> None:
        """From the link: see LinkListener. The heartbeat moves only while that thread lives."""
        self._beat = (self._beat + 1) & 0xFFFFFFFF

    def _watched(self, result: Result) -> None:
        seen = view(result, allow_simulated=self.settings.allow_simulated)
        self._loop.call_soon_threadsafe(self._remember, seen)

    # --- called in the event loop ---------------------------------------------------------------
    def _set_health(self, health: Health) -> None:
        self.health = health
        if not health.link:
            for trigger_id in list(self._waiting):
                self._resolve(trigger_id, self._refuse(trigger_id, Code.LINK_LOST))

    def _resolve(self, trigger_id: str, answer: Answer) -> None:
        future = self._waiting.get(trigger_id)
        if future is not None and not future.done():
            future.set_result(answer)

    def _remember(self, seen: ResultView) -> None:
        self._results[seen.result_id] = seen
        while len(self._results) > REMEMBERED:
            self._results.popitem(last=False)
        self._events.put_nowait(seen)

    async def _emit(self) -> None:
        while True:
            seen = await self._events.get()
            for name, value in seen.fields.items():
                setattr(self._generator.event, name, value)
            try:
                await self._generator.trigger(message=seen.fields["ResultEvaluationDetails"])
            except Exception:
                # One client's broken subscription must not end the events of all the others;
                # GetResultById still answers for this one.
                log.exception("the event of result %s could not be sent to all", seen.result_id)

    async def _cycle(self) -> None:
        from asyncua import ua

        while True:
            facts = {
                "Ready": self.ready,
                "Link": self.health.link,
                "Fault": self.health.fault or not self.health.link,
                "Heartbeat": self._beat,
            }
            for name, (node, kind) in self._cyclic.items():
                await node.write_value(ua.Variant(facts[name], kind))
            await asyncio.sleep(CYCLE_S)


def _variant(value: Any, kind: Any) -> Any:
    from asyncua import ua

    return ua.Variant(ua.get_default_value(kind) if value is None else value, kind)


def _refuse_open_door(settings: OpcuaSettings) -> None:
    host = urlparse(settings.endpoint).hostname
    guarded = settings.users is not None and settings.pki is not None
    if host not in {"127.0.0.1", "::1", "localhost"} and not (guarded or settings.insecure):
        raise ConfigError(
            f"the OPC UA endpoint {settings.endpoint} is reachable from outside: give --users and "
            "--pki, or --insecure if this network is trusted"
        )


async def _server(settings: OpcuaSettings, users: Users | None) -> Any:
    try:
        from asyncua import Server, ua
    except ImportError as error:
        raise ConfigError(
            f"the OPC UA gateway needs asyncua ({error}): "
            "make install brings it, or pip install asyncua"
        ) from None
    server = Server(user_manager=None if users is None else user_manager(users))
    await server.init()
    server.set_endpoint(settings.endpoint)
    server.set_server_name("inspection station gateway")
    await server.set_application_uri(APPLICATION_URI)
    server.limits = transport_limits()
    server.iserver.max_monitored_item_queue_size = MAX_EVENTS
    if settings.pki is None:
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    else:
        host = urlparse(settings.endpoint).hostname or "localhost"
        cert, key = await certificate(settings.pki, APPLICATION_URI, host)
        await server.load_certificate(str(cert))
        await server.load_private_key(str(key))
        server.set_security_policy([ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt])
    if users is not None:
        server.set_identity_tokens([ua.UserNameIdentityToken])
    return server
