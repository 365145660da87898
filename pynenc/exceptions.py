"""Every error that pynenc raises on purpose.

::

    PynencError
    ├── RetryError
    │   └── ConcurrencyRetryError
    ├── SerializationError
    ├── TaskError
    │   ├── InvalidTaskOptionsError
    │   └── TaskRoutingError
    │       ├── InvocationConcurrencyWithDifferentArgumentsError
    │       └── NamedGroupChangedError
    ├── InvocationError
    │   ├── InvocationNotFoundError
    │   ├── InvocationStatusError
    │   │   └── InvocationStatusTransitionError
    │   ├── WorkerLostError
    │   ├── WorkerMemoryError
    │   ├── TaskTimeoutError
    │   ├── InvocationCancelledError
    │   ├── InvocationExpiredError
    │   ├── InvocationControlledError
    │   ├── DependencyError
    │   └── CycleDetectedError
    ├── BlobLostError
    ├── StateBackendError
    ├── RunnerError
    │   ├── SupervisorLostError
    │   └── ProtocolError
    └── ConfigError
    WorkerTraceback (the cause of an exception that came from a worker)

Errors with facts have one constructor that takes them, so each sentence is written once.
All of them go through pickle.
"""

from __future__ import annotations

from collections.abc import Sequence


class PynencError(Exception):
    """The base of every error of pynenc."""


LONGEST_DELAY_S = 1e11
"""Three thousand years."""


class RetryError(PynencError):
    """Raised by a task to ask for another attempt.

    Args:
        args: What to say when there are no attempts left.
        delay: Seconds until the next attempt; None leaves it to the task's options.

    >>> RetryError("the server is busy", delay=2.5).delay
    2.5
    """

    def __init__(self, *args: object, delay: float | None = None) -> None:
        if delay is not None and not 0 <= delay <= LONGEST_DELAY_S:
            raise ValueError(
                f"the delay of a retry is a number of seconds of at least 0 and at most {LONGEST_DELAY_S:g}, not {delay!r}"
            )
        super().__init__(*args)
        self.delay = delay


class ConcurrencyRetryError(RetryError):
    """Another attempt is wanted because the concurrency rules held this one back."""


class SerializationError(PynencError):
    """A result or an exception could not be pickled, or could not be read back."""


class TaskError(PynencError):
    """Something is wrong with a task itself."""

    def __init__(self, task_id: str, message: str) -> None:
        super().__init__(task_id, message)
        self.task_id = task_id
        self.message = message

    def __str__(self) -> str:
        return f"task {self.task_id}: {self.message}"


class InvalidTaskOptionsError(TaskError):
    """Options of a task have an unknown name or a value of the wrong type; all of them are listed.

    >>> error = InvalidTaskOptionsError("jobs.add", ["max_retry: unknown option, did you mean 'max_retries'?"])
    >>> print(error)
    task jobs.add: 1 invalid option
      max_retry: unknown option, did you mean 'max_retries'?
    """

    def __init__(self, task_id: str, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        plural = "s" if len(self.problems) != 1 else ""
        super().__init__(task_id, "\n  ".join([f"{len(self.problems)} invalid option{plural}", *self.problems]))

    def __reduce__(self) -> tuple[type[InvalidTaskOptionsError], tuple[str, list[str]]]:
        return type(self), (self.task_id, self.problems)


class TaskRoutingError(TaskError):
    """A call could not be registered under the task's rules."""


class InvocationConcurrencyWithDifferentArgumentsError(TaskRoutingError):
    """An invocation with the same key but other arguments is already there."""


class NamedGroupChangedError(TaskRoutingError):
    """The items of a named group are not those with which it was made; says which."""


class InvocationError(PynencError):
    """Something is wrong with one invocation."""

    def __init__(self, invocation_id: str, message: str) -> None:
        super().__init__(invocation_id, message)
        self.invocation_id = invocation_id
        self.message = message

    def __str__(self) -> str:
        return f"invocation {self.invocation_id}: {self.message}"


class InvocationNotFoundError(InvocationError):
    """No invocation with this id is known to the state backend.

    Its constructor takes the id and where it was looked for.
    """


class InvocationStatusError(InvocationError):
    """The invocation's status does not allow what was asked."""


class InvocationStatusTransitionError(InvocationStatusError):
    """The status table does not allow one status after the other."""


class WorkerLostError(InvocationError):
    """The worker process died while it ran this call."""


class WorkerMemoryError(InvocationError):
    """The call took more memory than there is for it; its worker was ended."""


class TaskTimeoutError(InvocationError):
    """The call ran for longer than the task's option `timeout` allows; its worker was ended."""


class InvocationCancelledError(InvocationError):
    """The invocation was cancelled before it had a result."""


class InvocationExpiredError(InvocationError):
    """The call had not begun when the time of the task's option `expires` was over."""


class InvocationControlledError(InvocationError):
    """The call was not run, because as many calls of its key ran as may."""


class DependencyError(InvocationError):
    """The call was not run, because an invocation whose result it takes has none; names the one with which it began."""


class CycleDetectedError(PynencError):
    """A call was made from inside of the same call, directly or through others: it would wait for itself.

    Args:
        cycle: The calls in words, from the one that is asked for again to itself.

    >>> print(CycleDetectedError(["jobs.f(x=1)", "jobs.g(x=1)", "jobs.f(x=1)"]))  # doctest: +ELLIPSIS
    a call would wait for itself: jobs.f(x=1) -> jobs.g(x=1) -> jobs.f(x=1). ...
    """

    def __init__(self, cycle: Sequence[str]) -> None:
        super().__init__(list(cycle))
        self.cycle = list(cycle)

    def __str__(self) -> str:
        return (
            f"a call would wait for itself: {' -> '.join(self.cycle)}. If it is not meant to be waited for, set the task's "
            "option cycle_control=False"
        )


class BlobLostError(PynencError):
    """A large argument or result is not there any more: it was released or purged, or the machine was started anew.

    Args:
        name: The blob.
        size: How many bytes it had.
    """

    def __init__(self, name: str, size: int) -> None:
        super().__init__(name, size)
        self.name = name
        self.size = size

    def __str__(self) -> str:
        return (
            f"blob {self.name}, a large value of {self.size:,} bytes, is not there any more: it was released (the results of a "
            "stream are, once they were taken; arguments, once their calls have ended; what app.put wrote, once the app was "
            "closed), purged, or lost when the machine was started anew. Make the call again"
        )


class StateBackendError(PynencError):
    """The database of the state directory cannot be used.

    Args:
        message: Which file, why, and what to do.
        fault: What is wrong, for whoever acts on it: a member of `pynenc.state_backend.faults.Fault`.
    """

    def __init__(self, message: str, fault: str = "") -> None:
        super().__init__(message)
        self.fault = fault


class RunnerError(PynencError):
    """The runner cannot do its work: the supervisor does not start, answer or agree."""


def asked_in_handler(interrupted: str) -> RunnerError:
    """What a signal handler is told that asks where nothing can be asked.

    Args:
        interrupted: What the main program was doing, in the past tense.
    """
    return RunnerError(
        f"pynenc was asked for something in a signal handler that interrupted the main program while it {interrupted}; "
        "set a flag in the handler and ask in the main program, or leave it to the next signal"
    )


class SupervisorLostError(RunnerError):
    """The supervisor ended while this process waited for it."""


class ProtocolError(RunnerError):
    """Bytes came that are not a message of this version of pynenc."""


class ConfigError(PynencError):
    """A configuration value has an unknown name or a wrong type."""

    def __init__(self, source: str, field: str, problem: str) -> None:
        super().__init__(source, field, problem)
        self.source = source
        self.field = field
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.source}: {self.field}: {self.problem}"


class WorkerTraceback(Exception):
    """The traceback of the worker in which a task failed; stands as the cause of the task's exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"
