"""Begin the supervisor's interpreter before it is known what to tell it.

It starts while this process imports what a client needs, reads the configuration and looks whether there is a supervisor
already; then it is told its settings, or nothing, and ends. So this module imports little.
"""

from __future__ import annotations

import os
from typing import Any

from pynenc import context
from pynenc.client.paths import paths_of
from pynenc.exceptions import RunnerError
from pynenc.system.boot import begin_module
from pynenc.system.descriptors import lifted


class BegunSupervisor:
    """A supervisor's interpreter that waits to be told its settings.

    Attributes:
        process: The interpreter.
        ready: Where it tells that it serves, or why it does not.

    Raises:
        RunnerError: It cannot be started.
    """

    def __init__(self) -> None:
        ready, self._ready_fd = map(lifted, os.pipe())
        self._made_in = os.getpid()
        self.ready = open(ready)  # noqa: SIM115  # `abandon` closes it.
        try:
            self.process = begin_module("pynenc.supervisor.main", (self._ready_fd,), new_session=True)
        except BaseException:
            self.ready.close()
            raise
        finally:
            os.close(self._ready_fd)

    @property
    def is_own(self) -> bool:
        """Whether this process has begun it, and not the one that forked this one."""
        return self._made_in == os.getpid()

    def tell(self, settings: dict[str, Any]) -> None:
        """Have it serve."""
        self.process.tell({**settings, "ready_fd": self._ready_fd})

    def abandon(self) -> None:
        """It ends, unless it was told to serve."""
        self.process.abandon()
        self.ready.close()


def begin_unless_running(state_dir: str, app_id: str) -> BegunSupervisor | None:
    """Begin one if it seems that none runs, and this process may have to start one."""
    if context.own_supervisor(app_id) is not None or os.path.exists(paths_of(state_dir, app_id).run_file):
        return None
    try:
        return BegunSupervisor()
    except (RunnerError, OSError):
        return None  # Whoever needs it tries again, and is told why.
