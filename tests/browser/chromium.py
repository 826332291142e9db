"""A headless Chromium of one's own, spoken to in its DevTools protocol over two pipes: JSON
messages, a NUL after each.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PROGRAM = "chromium"  # Debian's package and command
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
]
DEADLINE_S = 60


def missing() -> str | None:
    """What this machine lacks for these tests, None where it lacks nothing."""
    return None if shutil.which(PROGRAM) else f"not on PATH: {PROGRAM} (apt-get install chromium)"


class Chromium:
    """A browser with an empty profile in `folder`; `close` ends it with all its processes."""

    def __init__(self, folder: Path) -> None:
        # It reads its descriptor 3 and writes its descriptor 4. Ours go to 10 and above first, so
        # that bash, which puts them there, does not overwrite one with the other.
        ends = [
            fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for fd in pair
        ]
        its_in, self.to, self.out, its_out = ends
        start = [
            "bash",
            "-c",
            f'exec "$@" 3<&{its_in} 4>&{its_out}',
            "bash",
            PROGRAM,
            *FLAGS,
            f"--user-data-dir={folder}/profile",
        ]
        self.log = folder / "chromium.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*start, "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(its_in, its_out),
                start_new_session=True,
            )
        os.close(its_in)
        os.close(its_out)
        self.buffer = b""
        self.calls = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """The method's result; an error of the protocol raises."""
        self.calls += 1
        message = {
            "id": self.calls,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        os.write(self.to, json.dumps(message).encode() + b"\0")
        reply = self._until(lambda found: found.get("id") == self.calls, method)
        assert "error" not in reply, f"{method}: {reply['error']}"
        return dict(reply["result"])

    def wait(self, event: str, session: str) -> None:
        """Returns once `event` has come in that session."""
        mine = [e for e in self.events if (e["method"], e.get("sessionId")) == (event, session)]
        if not mine:
            self._until(
                lambda found: (found.get("method"), found.get("sessionId")) == (event, session),
                event,
            )

    def _until(self, is_it: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE_S
        while True:
            message = self._next(end, what)
            if "method" in message:
                self.events.append(message)
            if is_it(message):
                return message

    def _next(self, end: float, what: str) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready = select.select([self.out], [], [], max(0.0, end - time.monotonic()))[0]
            read = os.read(self.out, 1 << 20) if ready else b""
            if not read:
                why = "it ended" if ready else f"no answer in {DEADLINE_S} s"
                raise AssertionError(
                    f"chromium, {what}: {why}\n{self.log.read_text(errors='replace')[-2000:]}"
                )
            self.buffer += read
        message, _, self.buffer = self.buffer.partition(b"\0")
        return dict(json.loads(message))

    def open(self, page: Path, width: int = 1200, dark: bool = False) -> View:
        return View(self, page, width, dark)

    def close(self) -> None:
        with suppress(AssertionError, OSError):  # it has ended already, or does not answer
            self.call("Browser.close")
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.to)
        os.close(self.out)


class View:
    """A page in a tab of `width` CSS pixels, loaded."""

    def __init__(self, browser: Chromium, page: Path, width: int, dark: bool) -> None:
        self.browser = browser
        self.target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Emulation.setScrollbarsHidden", hidden=True)  # they would take from the width
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.url = page.resolve().as_uri()
        self.call("Page.navigate", url=self.url)
        browser.wait("Page.loadEventFired", self.session)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON carries it."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG file."""
        return base64.b64decode(
            self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        )

    def complaints(self) -> list[str]:
        """What the console shows of errors and warnings: of scripts, of the network, of
        the policy.
        """
        found = []
        for method, params in self._events():
            if method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
            if method == "Runtime.consoleAPICalled" and params["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(str(params["args"]))
            if method == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
        return found

    def requests(self) -> list[str]:
        """The addresses that the page asked for, itself and what it carries along left out."""
        asked = [
            params["request"]["url"]
            for method, params in self._events()
            if method == "Network.requestWillBeSent"
        ]
        return [url for url in asked if url != self.url and not url.startswith("data:")]

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)

    def _events(self) -> list[tuple[str, dict[str, Any]]]:
        # any call: what happened before its reply has been reported
        self.call("Page.getNavigationHistory")
        return [
            (e["method"], e["params"])
            for e in self.browser.events
            if e.get("sessionId") == self.session
        ]
