"""What an OPC UA client may send us, and how much we may send it after it was away."""

from typing import Any

MAX_REQUEST = 1 << 20  # bytes; nobody has more to say to this server
# Events kept for one client that is away, about 0.7 kB each without regions. Older ones it can
# still ask for by id (GetResultById) or FETCH from the ledger; `seq` in ResultContent shows a gap.
MAX_EVENTS = 5000


def transport_limits() -> Any:
    """Limits of 1 MiB in 16 chunks for requests, told to clients as "no limit".

    An asyncua client takes the server's limit for requests as its own limit for what it receives,
    and disconnects above it. All events of a client that was away come in one message, so with
    1 MiB announced a client that missed more than some 1,500 results lost its connection and all
    of them (seen with asyncua 2.1.0). What arrives here stays limited.
    """
    from asyncua.common.connection import TransportLimits

    class Limits(TransportLimits):
        def create_acknowledge_and_set_limits(self, msg: Any) -> Any:
            size, chunks = self.max_message_size, self.max_chunk_count
            acknowledge: Any = super().create_acknowledge_and_set_limits(msg)
            acknowledge.MaxMessageSize = acknowledge.MaxChunkCount = 0
            self.max_message_size, self.max_chunk_count = size, chunks
            return acknowledge

    return Limits(65535, 65535, 16, MAX_REQUEST)
