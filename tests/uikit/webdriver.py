"""A WebDriver client of a few lines: headless Chromium through chromedriver, stdlib only."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--js-flags=--expose-gc",
    "--enable-precise-memory-info",
]


def missing() -> str | None:
    """Why there is no browser here, or None."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            return f"{name} is not installed (apt-get install chromium chromium-driver)"
    return None


class Browser:
    """One window. Close it."""

    def __init__(self, width=1280, height=800, flags=()):
        self._home = tempfile.TemporaryDirectory(prefix="browser", ignore_cleanup_errors=True)
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that the browser can be ended with its driver
        )
        port = None
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                port = int(line.rstrip().rstrip(".").rsplit(" ", 1)[1])
                break
        self._url = f"http://127.0.0.1:{port}"
        options = {
            "binary": shutil.which("chromium"),
            "args": [
                *FLAGS,
                *flags,
                f"--user-data-dir={self._home.name}",
                f"--window-size={width},{height}",
            ],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        try:
            answer = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._url += f"/session/{answer['sessionId']}"
            self.view(width, height)
        except BaseException:
            self._end()
            raise

    def view(self, width, height, ratio=1.0):
        """Set the size of the page itself (not of the window around it)."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)

    def devtools(self, command, parameters=None):
        body = {"cmd": command, "params": parameters or {}}
        return self._call("POST", "/goog/cdp/execute", body)

    def open(self, url):
        self._call("POST", "/url", {"url": url})

    def run(self, script, *arguments):
        """Run JavaScript; `return` gives a value."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, expression, seconds=10.0, what=None):
        """Poll a JavaScript expression until it is true; its value."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(f"return {expression}")
            if value:
                return value
            time.sleep(0.03)
        raise AssertionError(f"not within {seconds} s: {what or expression}")

    def press(self, key):
        """One key, as from the keyboard."""
        codes = {
            "Tab": "\ue004",
            "Enter": "\ue007",
            "Escape": "\ue00c",
            "ArrowRight": "\ue014",
            "ArrowLeft": "\ue012",
            "Space": "\ue00d",
        }
        typed = codes.get(key, key)
        actions = [{"type": "keyDown", "value": typed}, {"type": "keyUp", "value": typed}]
        body = {"actions": [{"type": "key", "id": "keys", "actions": actions}]}
        self._call("POST", "/actions", body)

    def log(self, kind="browser"):
        """Console messages, or ("performance") DevTools events, since the last call."""
        return self._call("POST", "/se/log", {"type": kind})

    def requests(self):
        """Addresses the page asked for since the last call."""
        found = []
        for entry in self.log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def screenshot(self, path=None):
        data = base64.b64decode(self._call("GET", "/screenshot"))
        if path is not None:
            Path(path).write_bytes(data)
        return data

    def close(self):
        try:
            self._call("DELETE", "")
        finally:
            self._end()

    def _end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._driver.pid, signal.SIGTERM)
        self._driver.wait(10)
        self._home.cleanup()

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=180) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            told = json.load(error)["value"]
            raise AssertionError(f"{method} {path}: {told['message'][:400]}") from None
