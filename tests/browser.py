"""A real browser for tests: Chromium, by its driver's wire protocol, where there are both.

Nothing to install for it in Python; where the programs are missing, the tests skip.
"""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


class Browser:
    """One window. Close it in the end.

    Args:
        profile: a new folder for what a browser writes.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM and DRIVER
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._driver = subprocess.Popen(
            [DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._at = f"http://127.0.0.1:{port}"
        self._wait()
        chrome = {"binary": CHROMIUM, "args": [*OPTIONS, f"--user-data-dir={profile}"]}
        wish = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wish}})
        self._session = f"/session/{made['sessionId']}"

    def close(self) -> None:
        """End browser and driver."""
        try:
            self._call("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(30)

    def open(
        self,
        address: str,
        *,
        width: int = 1280,
        dark: bool = False,
        calm: bool = True,
        still: bool = False,
    ) -> None:
        """Show a page afresh.

        Args:
            address: of the page.
            width: of the window; below 500 it is a phone's.
            dark: what the reader's system prefers.
            calm: it prefers no motion.
            still: time stands still for the page; what it plays waits for its next step for ever.
        """
        phone = {"deviceScaleFactor": 1, "mobile": width < 500}
        self._devtools("Emulation.setDeviceMetricsOverride", width=width, height=900, **phone)
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if calm else "no-preference",
        }
        wanted = [{"name": name, "value": value} for name, value in features.items()]
        self._devtools("Emulation.setEmulatedMedia", features=wanted)
        self._post("/url", {"url": "about:blank"})
        stop = "window.setTimeout = () => 0" if still else ""
        held = self._devtools("Page.addScriptToEvaluateOnNewDocument", source=stop)
        self._post("/url", {"url": address})
        self._devtools("Page.removeScriptToEvaluateOnNewDocument", **held)

    def run(self, script: str, *given: Any) -> Any:
        """What a script in the page returns."""
        return self._post("/execute/sync", {"script": script, "args": list(given)})

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        steps = [{"type": kind, "value": k} for k in keys for kind in ("keyDown", "keyUp")]
        self._post("/actions", {"actions": [{"type": "key", "id": "keys", "actions": steps}]})

    def complaints(self) -> list[str]:
        """What the console said since it was last asked."""
        return [one["message"] for one in self._post("/se/log", {"type": "browser"})]

    def _devtools(self, command: str, **options: Any) -> Any:
        return self._post("/goog/cdp/execute", {"cmd": command, "params": options})

    def _post(self, path: str, body: Any) -> Any:
        return self._call("POST", self._session + path, body)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._at + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(error.read().decode()[:2000]) from None

    def _wait(self) -> None:
        for _ in range(200):
            try:
                self._call("GET", "/status")
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("chromedriver does not answer")
