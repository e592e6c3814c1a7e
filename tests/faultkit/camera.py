"""A network camera over loopback HTTP (MJPEG) that can be made to fail in every known way."""

import http.server
import socketserver
import threading
import time

import cv2
import numpy as np


def picture(number: int, size: tuple[int, int] = (240, 320), level: int = 120) -> np.ndarray:
    """A textured BGR picture; every number gives other pixels."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(level - 40, level + 40, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    cv2.putText(image, str(number), (10, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (255, 255, 255), 2)
    return image


def jpeg(image: np.ndarray, quality: int = 85) -> bytes:
    ok, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok
    return data.tobytes()


class FaultCamera:
    """Serves `fps` pictures a second at `url`; set `mode` from any thread.

    Modes: ok, stall (connected, silent), freeze (the very same bytes again), repeat (every second
    picture twice), truncate, corrupt, no_eoi_data (truncated but with an end marker), size (other
    size), black, white, drop (closes every connection and refuses new ones), once_<mode> for one
    picture only.
    """

    def __init__(self, fps: float = 25.0, pictures: int = 32) -> None:
        self.fps = fps
        self.mode = "ok"
        self.sent = 0
        self.last_sent_s = 0.0
        self._images = [picture(i) for i in range(pictures)]
        self._encoded = [jpeg(image) for image in self._images]
        self._frozen = self._encoded[0]
        self._lock = threading.Lock()
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera._serve(self)

            def log_message(self, *_args: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
            daemon_threads = True

            def handle_error(self, *_args: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/stream"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def __enter__(self) -> "FaultCamera":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.mode = "drop"
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        if self.mode == "drop":
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        due = time.monotonic()
        try:
            while self.mode != "drop":
                if self.mode != "stall":
                    data = self._next()
                    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
                    handler.wfile.write(head % len(data) + data + b"\r\n")
                    handler.wfile.flush()
                    self.last_sent_s = time.monotonic()
                due += 1 / self.fps
                wait = due - time.monotonic()
                if wait > 0:
                    time.sleep(wait)
                else:
                    due = time.monotonic()
        except OSError:
            pass
        handler.close_connection = True
        handler.connection.close()

    def _next(self) -> bytes:
        with self._lock:
            mode = self.mode
            if mode.startswith("once_"):
                mode, self.mode = mode[5:], "ok"
            number = self.sent
            self.sent += 1
        if mode == "repeat":
            number //= 2
        return self._picture(mode, number)

    def _picture(self, mode: str, number: int) -> bytes:
        good = self._encoded[number % len(self._encoded)]
        # Unique per picture without encoding again: a comment segment after start-of-image.
        tag = number.to_bytes(8, "big")
        good = good[:2] + b"\xff\xfe\x00\x0a" + tag + good[2:]
        if mode == "freeze":
            return self._frozen
        self._frozen = good
        return damage(good, mode, number)


def damage(good: bytes, mode: str, number: int = 0) -> bytes:
    """One whole JPEG made faulty."""
    rng = np.random.default_rng(number)
    if mode == "truncate":
        return good[: int(len(good) * rng.uniform(0.3, 0.9))]
    if mode == "no_eoi_data":
        return good[: int(len(good) * rng.uniform(0.3, 0.9))] + b"\xff\xd9"
    if mode == "corrupt":
        # Noise with a marker in it. Noise without one can by chance be a valid code of as many
        # blocks: no decoder notices, and the picture goes to the engine as what it looks like.
        at = int(len(good) * rng.uniform(0.4, 0.8))
        noise = rng.integers(0, 256, 400, dtype=np.uint8).tobytes()
        return good[:at] + noise[:200] + b"\xff\x47" + noise[202:] + good[at + 400 :]
    if mode == "size":
        return jpeg(picture(number, size=(120, 160)))
    if mode in ("black", "white"):
        level = 0 if mode == "black" else 255
        image = np.full((240, 320, 3), level, np.uint8)
        image[0, number % 320] = 255 - level  # no two alike, or it would be a repeat
        return jpeg(image, 100)
    return good
