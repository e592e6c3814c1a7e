"""The Modbus gateway: the station on Modbus TCP, registers only (pymodbus).

Input registers 0..20 show the station (function code 4), holding registers 0..4 take the PLC's
words (function codes 3, 6, 16, 22, 23). Coils and discrete inputs do not exist. The map, the
handshake and the acceptance rule are in docs/integrator.md.
"""

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from typing import Any

from engines.errors import ConfigError, InUseError, StationError
from station.gateways.bridge import Bridge
from station.gateways.link import StationLink
from station.gateways.link_io import StationAddress
from station.gateways.options import log
from station.gateways.registers import HOLDING_COUNT, INPUT_COUNT

_READ_INPUT, _WRITES = 4, frozenset({6, 16, 22, 23})
_ONLY_REGISTERS = frozenset({3, 4, 6, 16, 22, 23})


@dataclass(frozen=True, slots=True)
class ModbusSettings:
    """Where to listen, and how long a part may take."""

    host: str
    port: int
    deadline_ms: int
    prefix: int | None = None
    camera: str = ""  # what part ids begin with, see options.camera_prefix
    allow_simulated: bool = False


class ModbusGateway:
    """The Modbus server and the link to one station. `port` is known after `start()`."""

    def __init__(self, address: StationAddress, settings: ModbusSettings) -> None:
        self.settings = settings
        self.port = settings.port
        self.link = StationLink(address, self)
        self.bridge = Bridge(
            self.link.trigger,
            deadline_ms=settings.deadline_ms,
            prefix=settings.prefix,
            camera=settings.camera,
            allow_simulated=settings.allow_simulated,
        )
        self.on_health = self.bridge.on_health
        self.on_result = self.bridge.on_result
        self.on_refusal = self.bridge.on_refusal
        self.on_tick = self.bridge.on_tick
        self._holding = [0] * HOLDING_COUNT
        self._server: Any = None

    async def start(self) -> None:
        """Listen and connect. InUseError when the port is taken."""
        server = _server(self._action, self.settings.host, self.settings.port)
        try:
            await server.serve_forever(background=True)
        except (RuntimeError, OSError) as error:
            raise InUseError(
                f"Modbus cannot listen on {self.settings.host}:{self.settings.port} ({error}); "
                "choose another gateway.modbus_port or end the program that holds it"
            ) from None
        self._server = server
        self.port = server.transport.sockets[0].getsockname()[1]
        self.link.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`; StationError if the link's thread ended by itself."""
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.2)
            if self.link.failed is not None:
                raise StationError(
                    f"the link to the station ended unexpectedly ({self.link.failed!r}); "
                    "restart the gateway and report this"
                )

    async def close(self) -> None:
        """Close every connection and end the link."""
        if self._server is not None:
            await self._server.shutdown()
        self.link.stop()

    async def _action(
        self,
        function_code: int,
        start: int,
        address: int,
        count: int,
        registers: list[int],
        values: list[int] | list[bool] | None,
    ) -> Any:
        """pymodbus asks before every access; `registers` is its own block, changed in place."""
        from pymodbus.constants import ExcCodes

        if function_code not in _ONLY_REGISTERS:
            return ExcCodes.ILLEGAL_FUNCTION
        if function_code == _READ_INPUT:
            registers[:INPUT_COUNT] = self.bridge.read()
        elif values is not None and function_code in _WRITES:
            self._holding[address : address + count] = [int(value) for value in values]
            self.bridge.write(self._holding)
        return None


def _server(action: Any, host: str, port: int) -> Any:
    try:
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice
    except ImportError as error:
        raise ConfigError(
            f"the Modbus gateway needs pymodbus 3.16 or newer ({error}): "
            "make install brings it, or pip install 'pymodbus>=3.16'"
        ) from None
    bits = [SimData(0, values=False, datatype=DataType.BITS)]
    holding = [SimData(0, values=[0] * HOLDING_COUNT, datatype=DataType.REGISTERS)]
    inputs = [SimData(0, values=[0] * INPUT_COUNT, datatype=DataType.REGISTERS, readonly=True)]
    device = SimDevice(0, simdata=(bits, list(bits), holding, inputs), action=action)
    return ModbusTcpServer(device, address=(host, port))


async def serve(address: StationAddress, settings: ModbusSettings) -> None:
    """Run the gateway until SIGTERM or SIGINT."""
    gateway = ModbusGateway(address, settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await gateway.start()
        log().info(
            "modbus gateway listens",
            host=settings.host,
            port=gateway.port,
            station=f"{address.line}/{address.station}",
            ctl=address.ctl,
            prefix=f"{gateway.bridge.prefix:08x}",
        )
        await gateway.run(stop)
    finally:
        await gateway.close()
