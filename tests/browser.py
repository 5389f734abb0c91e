"""A headless Chromium driven over two pipes: no port, no package."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1500,950", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60  # seconds for any answer


class Page:
    """One page of a Chromium of its own; `events` holds all that it reported."""

    def __enter__(self):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads from 3 and writes to 4: first lift its ends out of the way of both.
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            preexec_fn=lambda: [os.dup2(end, number) for end, number in zip(theirs, (3, 4), strict=True)],
            close_fds=False, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (theirs_in, theirs_out, *theirs):
            os.close(end)
        self._count, self._rest, self.events, self.frames = 0, b"", [], []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._listen(self._session)
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def _listen(self, session):
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable", session)
        attach = {"autoAttach": True, "waitForDebuggerOnStart": False, "flatten": True}
        self.ask("Target.setAutoAttach", session, **attach)

    def ask(self, method, session=None, **params):
        """Return what a command answers."""
        self._count += 1
        number, message = self._count, {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": session} if session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _read(self):
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert time.monotonic() < deadline, "Chromium does not answer"
            piece = os.read(self._in, 1 << 20)
            assert piece, "Chromium has ended"
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
            if message["method"] == "Target.attachedToTarget":
                self.frames.append(message["params"]["sessionId"])
        return message

    def open(self, path):
        """Load a local file."""
        self.ask("Page.navigate", self._session, url=Path(path).resolve().as_uri())

    def run(self, code, frame=None):
        """Return the value of a JavaScript expression, in the page or in a frame of another origin."""
        answer = self.ask(
            "Runtime.evaluate", frame or self._session, expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, (code, answer["exceptionDetails"])
        return answer["result"].get("value")

    def wait(self, code, frame=None):
        """Return the value of an expression as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.run(code, frame)):
            assert time.monotonic() < deadline, f"never true: {code}"
            time.sleep(0.05)
        return value

    def last_frame(self):
        """Return the newest frame, listened to."""
        self.wait("true")
        self._listen(self.frames[-1])
        return self.frames[-1]

    def picture(self, path):
        """Write what is on the screen as PNG."""
        shot = self.ask("Page.captureScreenshot", self._session, format="png")
        Path(path).write_bytes(base64.b64decode(shot["data"]))
