"""The bus (ISP/1): PUB for watchers, ROUTER for the accountable path, one owner thread.

The bus listens to the ledger itself: each committed row is published and, when it is the RESULT of
a TRIGGER, answered to whoever asked, in seq order and byte for byte. The daemon only calls
`publish` for what is not stored (thumb); status goes out by itself every 200 ms.
"""

from station.bus_types import AdminReply, BusConfig, BusHandler, TriggerReply
from station.ledger import Ledger
from station.schema import Thumb

__all__ = ["AdminReply", "Bus", "BusConfig", "BusHandler", "TriggerReply"]


class Bus:
    """Binds both sockets in `start()`: InUseError for a taken port, ConfigError for an open bind
    without keys."""

    pub_address: str
    ctl_address: str

    def __init__(self, config: BusConfig, ledger: Ledger, handler: BusHandler) -> None:
        raise NotImplementedError

    def start(self) -> None:
        """Bind and run the owner thread; the first status goes out at once."""
        raise NotImplementedError

    @property
    def tick_ns(self) -> int:
        """Monotonic time of the owner thread's last loop."""
        raise NotImplementedError

    def publish_thumb(self, thumb_jpeg: bytes, w: int, h: int, trigger_id: str | None) -> Thumb:
        """Publish a small preview (<= 11 KB of JPEG); from any thread."""
        raise NotImplementedError

    def reload_keys(self) -> int:
        """Re-read the client keys (SIGHUP); how many are valid now. Revoked ones are cut off."""
        raise NotImplementedError

    def stop(self, timeout_s: float = 2.0) -> None:
        """Send what waits (LINGER 200 ms), close the sockets, end the thread."""
        raise NotImplementedError
