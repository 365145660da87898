"""Programs in a terminal of their own, as a user runs them: Ctrl-C goes to all of the foreground process group."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.conftest import GONE_S, PROJECT

CTRL_C = b"\x03"


class Terminal:
    """A pseudo-terminal with a program in its foreground.

    Args:
        arguments: What Python is to run.
        directory: Where.
        environment: Environment variables beside those of the test.
    """

    def __init__(self, arguments: list[str], directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        self._shown = b""
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=directory,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "dumb", **(environment or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # It is the foreground of this terminal.
        )
        os.close(slave)

    def press(self, key: bytes) -> None:
        """Type something."""
        os.write(self._master, key)

    def wait_for(self, text: str, seconds: float = GONE_S) -> None:
        """Wait until the terminal has shown something."""
        deadline = time.monotonic() + seconds
        while text not in self._shown.decode(errors="replace"):
            assert time.monotonic() < deadline, f"{text!r} does not come; the program shows {self._shown!r}"
            self._read(0.005)

    def wait(self, seconds: float = GONE_S) -> tuple[int, str]:
        """Wait until the program has ended; its exit code, and all that the terminal has shown."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"the program has not ended; it shows {self._shown!r}"
            self._read(0.005)
        self._read(0)
        # A key that is pressed is shown wherever the program is, also in the middle of a character.
        return self.process.returncode, self._shown.decode(errors="replace").replace("\r\n", "\n")

    def _read(self, timeout: float) -> None:
        while select.select([self._master], [], [], timeout)[0]:
            try:
                more = os.read(self._master, 65536)
            except OSError:
                more = b""  # The program has ended, and nobody else has the terminal.
            if not more:
                return
            self._shown += more

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
