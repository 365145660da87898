"""In which words the supervisor ends calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import assert_never

from pynenc.protocol.messages import NOT_RETRIABLE, Batch, Ending, Failure, format_invocation_id, invocation_number
from pynenc.state_backend.store import Store
from pynenc.supervisor.events import EndCalls, Ended, FailLost
from pynenc.supervisor.measuring import Measuring
from pynenc.supervisor.pool import Pool, Worker
from pynenc.supervisor.task import Task


class Endings:
    """Makes failures of what the rules say.

    Args:
        store: Where failures are that were committed.
        pool: Knows the workers that died.
        tasks: By their numbers.
        failures: Those of this turn, by invocation number.
        measuring: Knows what they had taken.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        tasks: Mapping[int, Task],
        failures: Mapping[int, Failure],
        measuring: Measuring,
    ) -> None:
        self._store = store
        self._pool = pool
        self._tasks = tasks
        self._failures = failures
        self._measuring = measuring

    def of_ended(self, ended: EndCalls) -> Failure:
        """The failure of calls that end for a reason of the supervisor's own."""
        now = time.time()
        task_id = self._tasks[ended.task].task_id
        started = now
        match ended.why:
            case Ended.TIMED_OUT:
                worker = self._pool.lost[ended.worker]
                ran_s = time.monotonic() - ended.began if ended.began else worker.ran_s
                started = now - ran_s
                type_name, ending = "TaskTimeoutError", Ending.FAILED
                message = (
                    f"it ran for {ran_s:.3g} s, longer than option timeout of task {task_id} allows; its worker "
                    f"(pid {worker.pid}) was ended"
                )
            case Ended.KILLED:
                worker = self._pool.lost[ended.worker]
                ran_s = time.monotonic() - ended.began if ended.began else worker.ran_s
                started = now - ran_s
                type_name, ending = "InvocationCancelledError", Ending.KILLED
                message = f"it was cancelled with force after it had run for {ran_s:.3g} s (task {task_id})"
            case Ended.MEMORY | Ended.SHORT:
                worker = self._pool.lost[ended.worker]
                ran_s = time.monotonic() - ended.began if ended.began else worker.ran_s
                started = now - ran_s
                type_name, ending = "WorkerMemoryError", Ending.FAILED
                message = self._why_memory(ended, worker, ran_s, task_id)
            case Ended.EXPIRED:
                type_name, ending = "InvocationExpiredError", Ending.FAILED
                message = f"it had not begun within the time of option expires of task {task_id}"
            case Ended.CANCELLED:
                type_name, ending = "InvocationCancelledError", Ending.CANCELLED
                message = f"it was cancelled before it began (task {task_id})"
            case Ended.CONTROLLED:
                type_name, ending = "InvocationControlledError", Ending.CONTROLLED
                message = (
                    f"it was not run: as many calls of its key ran as may (task {task_id}, options running_concurrency, "
                    "max_running and reroute_on_concurrency_control=False)"
                )
            case Ended.SHELVED:
                raise AssertionError("calls that are shelved have no outcome")
            case Ended.DEPENDENCY:
                type_name, ending = "DependencyError", Ending.FAILED
                message = self._why_dependency_failed(ended.root)
            case _:
                assert_never(ended.why)
        return Failure(
            ended.batch,
            ended.first,
            ended.stop,
            ended.worker,
            ended.attempt,
            Ending.RETRY if ended.again else ending,
            NOT_RETRIABLE,
            started,
            now,
            type_name,
            message,
            "",
            b"",
        )

    def of_lost(self, lost: FailLost) -> Failure:
        """The failure of a call whose worker died."""
        worker = self._pool.lost[lost.worker]
        now = time.time()
        started = now - worker.ran_s if lost.ran else now
        task = self._tasks[lost.task]
        call = format_invocation_id(invocation_number(lost.batch, lost.index))
        if lost.late_on_top:
            what = (
                f"the worker (pid {worker.pid}) was ended because a call that this one waited for ran in it, too, and took longer "
                f"than its option timeout allows (task {task.task_id}; with more spare_workers it has one of its own)"
            )
        elif lost.ran and worker.concurrent:
            what = (
                f"the worker (pid {worker.pid}) {worker.death} while it ran this call of task {task.task_id}, perhaps "
                "among others"
            )
        elif lost.ran:
            what = (
                f"the worker (pid {worker.pid}) {worker.death} {worker.ran_s:.3g} s after it began this call of task "
                f"{task.task_id}"
            )
        else:
            what = (
                f"the worker (pid {worker.pid}) {worker.death} before it had shipped the result of this call of task "
                f"{task.task_id}"
            )
        if lost.may_rerun:
            why = f"this was loss {lost.losses}, more than the task's option max_worker_losses allows"
        else:
            why = "it is not run again because of the task's option rerun_on_worker_loss=False"
        return Failure(
            lost.batch,
            lost.index,
            lost.index + 1,
            lost.worker,
            lost.attempt,
            Ending.FAILED,
            NOT_RETRIABLE,
            started,
            now,
            "WorkerLostError",
            f"{what}; {why}; {self._measuring.of_lost(worker)}",
            f"(call {call})",
            b"",
        )

    def of_dead_supervisor(self, batch: Batch, first: int, stop: int) -> Failure:
        """The failure of calls that another supervisor had, which died, and that must not run twice."""
        message = (
            f"its supervisor was killed, perhaps while this call of task {self._tasks[batch.task].task_id} ran; it is not run "
            "again because of the task's option rerun_on_worker_loss=False"
        )
        return _ended_now(batch.id, first, stop, Ending.FAILED, "WorkerLostError", message)

    def of_remade(self, batch: Batch, first: int, stop: int) -> Failure:
        """The failure of calls that were made by one that is run again."""
        message = (
            f"it was made by invocation {format_invocation_id(batch.parent)}, which did not come to its end and is run again: "
            f"it makes this call anew (task {self._tasks[batch.task].task_id})"
        )
        return _ended_now(batch.id, first, stop, Ending.CANCELLED, "InvocationCancelledError", message)

    def _why_memory(self, ended: EndCalls, worker: Worker, ran_s: float, task_id: str) -> str:
        if ended.why is Ended.SHORT:
            return (
                f"{self._measuring.of_shortage(worker)}, was ended {ran_s:.3g} s after it began this call of task {task_id}, "
                "and that was not the first time"
            )
        said = f"its worker (pid {worker.pid}) {self._measuring.of_limit(worker)}"
        if worker.concurrent:
            return f"{said}, while it ran this call of task {task_id}, perhaps among others; it was ended"
        said += f", {ran_s:.3g} s after it began this call of task {task_id}"
        on_top = ", which waits for others that may run on top of it" if ended.began else ""
        return f"{said}{on_top}; it was ended"

    def _why_dependency_failed(self, root: int) -> str:
        failure = self._failures.get(root) or self._store.failure_of(root)
        if failure is not None and failure.type_name == "DependencyError":
            return failure.message  # It names the invocation with which it began.
        called = format_invocation_id(root)
        if failure is None:
            return f"it was not run: invocation {called}, whose result it takes, has no result: nobody runs it, or it was purged"
        return f"it was not run: invocation {called}, whose result it takes, ended with {failure.type_name}: {failure.message}"


def _ended_now(batch: int, first: int, stop: int, ending: Ending, type_name: str, message: str) -> Failure:
    now = time.time()
    return Failure(batch, first, stop, 0, 0, ending, NOT_RETRIABLE, now, now, type_name, message, "", b"")
