"""The configuration of an app."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from pynenc.conf.field import FALSE, TRUE, Field, boolean, optional_integer, optional_path, text
from pynenc.conf.sources import Config, check_environment, project_directory

_SYNC_VARIABLES = (b"PYNENC__DEV_MODE_FORCE_SYNC_TASKS", b"PYNENC_DEV_MODE_FORCE_SYNC_TASK")
# What os.environ keeps behind its methods, which take a microsecond; this is asked at every call.
_environment: Mapping[bytes, bytes] = getattr(os.environ, "_data", None) or os.environb


class ConfigPynenc(Config):
    """What holds for a whole app.

    >>> ConfigPynenc({"num_workers": "2"}).num_workers
    2
    """

    app_id = text("pynenc", "Names the app. Apps with different ids in one state directory do not meet.")
    state_dir = optional_path(
        "The directory of the database. Default: `.pynenc` in the top folder of the project that the working "
        "directory belongs to."
    )
    num_workers = optional_integer(
        "How many worker processes run calls. Default: the CPUs this process may use (affinity and cgroup quota)."
    )
    dev_mode_force_sync_tasks = boolean(
        False, "Run every call in the calling process when it is made; no other process is started."
    )
    logging_level = text(
        "INFO", "The level of the app's logger.", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    )

    def __init__(self, config_values: Mapping[str, Any] | None = None, config_filepath: str | None = None) -> None:
        check_environment()
        self._state_path = ""
        super().__init__(config_values, config_filepath)

    @property
    def state_path(self) -> str:
        """The state directory, as an absolute path. Once it was asked for, changing the working directory makes no difference."""
        if not self._state_path:
            if self.state_dir is not None:
                self._state_path = os.path.abspath(os.path.expanduser(self.state_dir))
            else:
                self._state_path = os.path.join(project_directory(), ".pynenc")
        return self._state_path

    def look_anew(self) -> None:
        """Have the working directory decide once more which one the state directory is."""
        self._state_path = ""

    def set_value(self, field: Field[Any], value: Any) -> None:
        super().set_value(field, value)
        self.look_anew()

    @property
    def force_sync(self) -> bool:
        """Whether calls run in this process just now. The environment is asked anew each time: it wins, when it says something."""
        for variable in _SYNC_VARIABLES:  # per call
            said = _environment.get(variable)
            if said is not None:
                word = said.decode(errors="replace").strip().lower()
                if word in TRUE:
                    return True
                if word in FALSE:
                    return False
        forced: bool = self._values["dev_mode_force_sync_tasks"]
        return forced
