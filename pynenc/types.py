"""Type variables of the public API: a task keeps its function's parameters and result type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar

Params = ParamSpec("Params")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
Func: TypeAlias = Callable[Params, Result]
Args: TypeAlias = dict[str, Any]
