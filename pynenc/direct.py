"""Direct tasks: called like the plain function, run by workers; the caller gets the value itself."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, cast

from pynenc.arguments import Arguments
from pynenc.types import Func, Params, Result

if TYPE_CHECKING:
    from pynenc.task import Task

Items = Iterable[tuple[Any, ...] | dict[str, Any] | Arguments]
Split = Callable[[dict[str, Any]], Items | tuple[dict[str, Any], Items]]
"""From the arguments of a call, by name, to those of its parts; see `Pynenc.direct_task`."""


class DirectTask(Generic[Params, Result]):
    """A function whose calls block until workers have run them. Made by `@app.direct_task`.

    Attributes:
        task: The task behind it, for calls that are not to block: `resize.task("cat.png")`.
    """

    def __init__(
        self,
        task: Task[Params, Result],
        parallel_func: Split | None = None,
        aggregate_func: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if aggregate_func is not None and parallel_func is None:
            raise ValueError(
                f"{task.task_id}: aggregate_func joins the results of the parts that parallel_func makes: give that too"
            )
        self.task = task
        self.func: Func[Params, Result] = task.func
        self._split = parallel_func
        self._join = aggregate_func or list
        update_wrapper(self, task.func, updated=())

    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        """Have workers run the function, and wait for its value; that of a coroutine function is to be awaited.

        Raises:
            TypeError: The arguments do not fit the function, or one of them cannot be pickled.
            BaseException: What the function raised.
        """
        import inspect

        make = partial(self._make, args, kwargs)
        if inspect.iscoroutinefunction(self.func):
            return self._awaited(make)  # type: ignore[return-value]
        made = make()
        value: Any = made.result if self._split is None else self._join(list(made.results))
        return cast(Result, value)

    def _make(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The invocation of a call, or the group of its parts."""
        if self._split is None:
            return self.task(*args, **kwargs)
        common, items = _parts(self._split(self.task.args(*args, **kwargs).kwargs))
        return self.task.parallelize(items, common_args=common)

    async def _awaited(self, make: Callable[[], Any]) -> Any:
        made = make()
        if self._split is None:
            return await made.async_result()
        return self._join([value async for value in made.async_results()])

    def __reduce__(self) -> str | tuple[Any, ...]:
        name = self.func.__qualname__
        if getattr(sys.modules.get(self.__module__), name, None) is self:
            return name  # It travels as a function does.
        return DirectTask, (self.task, self._split, None if self._join is list else self._join)

    def __repr__(self) -> str:
        return f"DirectTask(func={self.func.__name__})"


def _parts(split: Any) -> tuple[Mapping[str, Any] | None, Items]:
    if isinstance(split, tuple) and len(split) == 2 and isinstance(split[0], dict) and not isinstance(split[1], dict):
        return split
    return None, split
