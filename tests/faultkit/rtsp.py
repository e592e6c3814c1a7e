"""A network camera over loopback RTSP: Motion JPEG in RTP (RFC 2435), inside the RTSP connection.

Enough of RFC 2326 for one player (OPTIONS, DESCRIBE, SETUP over TCP, PLAY, TEARDOWN), written here
because no RTSP server is at hand; the station reads it through OpenCV's FFMPEG.
"""

import contextlib
import socketserver
import struct
import threading
import time

from faultkit.camera import jpeg, picture

PAYLOAD = 1300  # bytes of picture in one RTP packet
SDP = """v=0
o=- 1 1 IN IP4 127.0.0.1
s=camera
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 26
a=control:track1
a=framerate:{fps:g}
"""


def parts_of(data: bytes) -> tuple[bytes, bytes, int, tuple[int, int]]:
    """(quantization tables, entropy-coded scan, RFC 2435 type, (h, w)) of a baseline JPEG."""
    at, tables, kind, size = 2, b"", 0, (0, 0)
    while True:
        marker, length = struct.unpack(">HH", data[at : at + 4])
        segment = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker == 0xFFDB:
            tables += b"".join(segment[i + 1 : i + 65] for i in range(0, len(segment), 65))
        elif marker == 0xFFC0:
            size = struct.unpack(">HH", segment[1:5])
            kind = 1 if segment[7] == 0x22 else 0  # 4:2:0 or 4:2:2
        elif marker == 0xFFDA:
            return tables, data[at:-2], kind, size


def packets(data: bytes, sequence: int, stamp: int) -> list[bytes]:
    """One picture as RTP packets."""
    tables, scan, kind, (h, w) = parts_of(data)
    made = []
    for at in range(0, len(scan), PAYLOAD):
        last = at + PAYLOAD >= len(scan)
        rtp = struct.pack(
            ">BBHII", 0x80, 26 | (0x80 if last else 0), (sequence + len(made)) & 0xFFFF, stamp, 7
        )
        head = struct.pack(">I", at) + bytes([kind, 255, w // 8, h // 8])
        quant = struct.pack(">BBH", 0, 0, len(tables)) + tables if at == 0 else b""
        made.append(rtp + head + quant + scan[at : at + PAYLOAD])
    return made


class RtspCamera:
    """Serves `fps` pictures a second at `url`; `mode` is ok, stall or drop (as `FaultCamera`)."""

    def __init__(self, fps: float = 25.0, pictures: int = 32) -> None:
        self.fps, self.mode, self.sent, self.last_sent_s = fps, "ok", 0, 0.0
        self._encoded = [jpeg(picture(i)) for i in range(pictures)]
        camera = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    camera._talk(self)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads, allow_reuse_address = True, True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"rtsp://127.0.0.1:{self._server.server_address[1]}/stream"
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.05,), daemon=True)

    def __enter__(self) -> "RtspCamera":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.mode = "drop"
        self._server.shutdown()
        self._server.server_close()

    def _talk(self, player: socketserver.StreamRequestHandler) -> None:
        lock = threading.Lock()
        while self.mode != "drop" and (first := player.rfile.readline()):
            if not first.strip() or first[:1] == b"$":
                continue  # receiver reports are not read
            verb, url = first.decode("latin-1").split()[:2]
            fields = {}
            while line := player.rfile.readline().decode("latin-1").strip():
                name, _, value = line.partition(":")
                fields[name.lower()] = value.strip()
            more, body = self._answer(verb, url)
            head = f"RTSP/1.0 200 OK\r\nCSeq: {fields.get('cseq', '0')}\r\nSession: 1\r\n{more}"
            with lock:
                player.wfile.write((head + "\r\n" + body).encode())
            if verb == "PLAY":
                pump = threading.Thread(target=self._pump, args=(player, lock), daemon=True)
                pump.start()
            if verb == "TEARDOWN":
                return

    def _answer(self, verb: str, url: str) -> tuple[str, str]:
        if verb == "OPTIONS":
            return "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER\r\n", ""
        if verb == "DESCRIBE":
            body = SDP.format(fps=self.fps).replace("\n", "\r\n")
            kind = f"Content-Type: application/sdp\r\nContent-Base: {url}/\r\n"
            return f"{kind}Content-Length: {len(body)}\r\n", body
        if verb == "SETUP":
            return "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n", ""
        return "", ""

    def _pump(self, player: socketserver.StreamRequestHandler, lock: threading.Lock) -> None:
        sequence, due = 0, time.monotonic()
        with contextlib.suppress(OSError):
            while self.mode != "drop":
                if self.mode == "ok":
                    data = self._encoded[self.sent % len(self._encoded)]
                    made = packets(data, sequence, int(time.monotonic() * 90_000) & 0xFFFFFFFF)
                    sequence += len(made)
                    framed = b"".join(b"$\0" + struct.pack(">H", len(p)) + p for p in made)
                    with lock:
                        player.wfile.write(framed)
                    self.sent += 1
                    self.last_sent_s = time.monotonic()
                due += 1 / self.fps
                time.sleep(max(0.0, due - time.monotonic()))
        with contextlib.suppress(OSError):
            player.connection.shutdown(2)
