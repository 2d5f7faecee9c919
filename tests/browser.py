"""Open a page in headless Chromium, and click and type in it as a person does.

Chromium reads and writes the messages of its DevTools protocol through two pipes, as JSON texts
that end with a zero byte.
"""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
# A name that is markup, which takes the title of a page that does not escape it.
HOSTILE = """<img src=x onerror="document.title='taken'">&'"""
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--mute-audio")


class Page:
    """A page in a browser.

    Attributes:
        problems: What the page reported: errors of scripts, blocked content, and failed requests.
        requested: The URLs that the page asked for, except for `data:`.
    """

    def __init__(self, commands: int, replies: int):
        self._commands, self._replies = commands, replies
        self._count, self._rest, self._session = 0, b"", ""
        self.problems: list[str] = []
        self.requested: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str, width: int = 1200, height: int = 800) -> None:
        """Load a page, and wait until its scripts have run."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                   deviceScaleFactor=1, mobile=False)  # fmt: skip
        self._call("Page.navigate", url=url)
        ready = "document.readyState === 'complete' ? resolve() : onload = () => resolve()"
        self.run(f"new Promise((resolve) => {{ {ready} }})")

    def run(self, script: str) -> Any:
        """Return the value of an expression of JavaScript, or of the promise that it returns."""
        answer = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """Return the visible text of the elements that match a CSS selector."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})]"
                        ".filter((e) => e.checkVisibility()).map((e) => e.innerText)")  # fmt: skip

    def point(self, selector: str, kind: str = "mouseMoved") -> None:
        """Move the pointer to the middle of an element, or press or release its left button."""
        found = json.dumps(selector)
        self.run(f"document.querySelector({found}).scrollIntoView({{block: 'center'}})")
        x, y = self.run(f"(({{left, top, width, height}}) => [left + width / 2, top + height / 2])"
                        f"(document.querySelector({found}).getBoundingClientRect())")  # fmt: skip
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y,
                   button="none" if kind == "mouseMoved" else "left", clickCount=1)  # fmt: skip

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.point(selector, kind)

    def type(self, selector: str, text: str) -> None:
        """Click on a field, and type text into it."""
        self.click(selector)
        self._call("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """Write what is visible of the page as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command, and return its result; the events before it are noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._reply()
            if reply.get("id") == self._count:
                assert "error" not in reply, reply
                return reply["result"]
            self._note(reply.get("method"), reply.get("params", {}))

    def _reply(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            received = os.read(self._replies, 1 << 20)
            assert received, "chromium has ended"
            self._rest += received
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event: str | None, parameters: dict[str, Any]) -> None:
        if event in ("Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed"):
            self.problems.append(json.dumps(parameters))
        if event == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            self.requested += [] if url.startswith("data:") else [url]


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start Chromium with an empty profile folder, and yield a page of it."""
    assert CHROMIUM
    to_child, commands = os.pipe()
    replies, from_child = os.pipe()
    # The ends of the child become its descriptors 3 and 4, so they must not have these numbers.
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (to_child, from_child)]
    quiet = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in range(3)]
    moved = [(os.POSIX_SPAWN_DUP2, end, n) for n, end in enumerate(ends, start=3)]
    words = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = os.posix_spawn(CHROMIUM, words, os.environ, file_actions=[*quiet, *moved])
    for end in (to_child, from_child, *ends):
        os.close(end)
    try:
        yield Page(commands, replies)
    finally:
        os.kill(process, signal.SIGTERM)
        os.waitpid(process, 0)
        os.close(commands)
        os.close(replies)
