"""What a type checker makes of the public API. mypy and pyright check this file in `make check`; it is run, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, assert_type

from pynenc import InvocationStatus, Pynenc, Task
from pynenc.arguments import Arguments
from pynenc.invocation import BaseInvocation, BaseInvocationGroup

app = Pynenc("typing", config_values={"dev_mode_force_sync_tasks": True})


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task(max_worker_losses=2)
def shout(text: str) -> str:
    return text.upper()


def test_results_have_the_types_of_the_functions() -> None:
    assert_type(add(1, 2).result, int)
    assert_type(add(1, y=2).get(1.0), int)
    assert_type(shout("a").result, str)
    assert_type(list(add.parallelize([(1, 2)]).results), list[int])
    assert_type(add.stream([(1, 2)]), Iterator[int])
    assert_type(add.args(1), Arguments)
    assert_type(add(1).status, InvocationStatus)


if TYPE_CHECKING:
    # What these two are generic over is the function's parameters, which have no name to write here.
    one: BaseInvocation[..., int] = add(1)
    many: BaseInvocationGroup[..., str] = shout.parallelize([("a",)])
    task: Task[..., int] = add
    add("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    shout()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
