"""Each test of this folder runs with worker processes and in synchronous mode."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["distributed", "synchronous"], autouse=True)
def mode(request: pytest.FixtureRequest, leaves_nothing: None, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "synchronous":
        monkeypatch.setenv("PYNENC__DEV_MODE_FORCE_SYNC_TASKS", "True")
    return str(request.param)
