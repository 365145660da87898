"""Calls that end as nobody expects, however they are run: in worker processes, and in synchronous mode."""

from __future__ import annotations

from typing import Any

import pytest

from tests import odd


@pytest.mark.parametrize("how", ["gather", "group", "task", "callback"])
@pytest.mark.parametrize("code", [3, "why"])
def test_an_exit_of_what_a_coroutine_has_started_ends_that_call_alone(how: str, code: Any) -> None:
    error = odd.exit_beside(how, code).exception
    assert type(error) is SystemExit
    assert error.code == code
    assert odd.nap(0.0).get(timeout=20) == 0.0
