"""Make an app step by step."""

from __future__ import annotations

from typing import Any, Self

from pynenc.app import Pynenc


class PynencBuilder:
    """Collects configuration and makes an app of it.

    >>> app = PynencBuilder().app_id("built").num_workers(2).build()
    >>> app.app_id, app.conf.num_workers
    ('built', 2)
    """

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._filepath: str | None = None

    def app_id(self, app_id: str) -> Self:
        """Name the app."""
        return self.custom_config(app_id=app_id)

    def num_workers(self, num_workers: int) -> Self:
        """Set how many worker processes run calls."""
        return self.custom_config(num_workers=num_workers)

    def state_dir(self, path: str) -> Self:
        """Set the directory of the database."""
        return self.custom_config(state_dir=path)

    def dev_mode(self, force_sync_tasks: bool = True) -> Self:
        """Run every call in the calling process."""
        return self.custom_config(dev_mode_force_sync_tasks=force_sync_tasks)

    def logging_level(self, level: str) -> Self:
        """Set the level of the app's logger."""
        return self.custom_config(logging_level=level)

    def config_file(self, path: str) -> Self:
        """Read this file instead of the one that would be found."""
        self._filepath = path
        return self

    def custom_config(self, **values: Any) -> Self:
        """Set any fields of the configuration reference."""
        self._values.update(values)
        return self

    def build(self) -> Pynenc:
        """Make the app.

        Raises:
            ConfigError: A value has an unknown name or a wrong type.
        """
        values = dict(self._values)
        return Pynenc(values.pop("app_id", None), values, self._filepath)
