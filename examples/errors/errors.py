"""What errors look like: in a task, in a call, on the way, and when a worker dies.

Run it with `pynenc run examples/errors/errors.py`.
"""

from __future__ import annotations

import os
import signal
import threading

from pynenc import Pynenc, WorkerLostError

app = Pynenc("errors")


@app.task
def divide(dividend: float, divisor: float) -> float:
    """Divide; raises when the divisor is zero."""
    return dividend / divisor


@app.task(max_worker_losses=0)
def crash() -> None:
    """Die as a segmentation fault or the kernel's out-of-memory killer would make it die."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Make every mistake once."""
    print("1. A task raises: the caller gets the exception, with the worker's traceback as its cause.")
    try:
        print(divide(1, 0).result)
    except ZeroDivisionError as error:
        print(f"   {error!r}\n   caused by {str(error.__cause__).strip().splitlines()[-2].strip()}")

    print("2. A wrong call fails where it is made, before anything is sent.")
    try:
        divide(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    except TypeError as error:
        print(f"   {error}")

    print("3. An argument that cannot travel is named.")
    try:
        divide(1, threading.Lock())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        print(f"   {error}")

    print("4. One failure among many does not hide the rest.")
    for outcome in divide.parallelize([(1, 1), (1, 0), (1, 2)]).outcomes:
        print(f"   {outcome.result if outcome.ok else repr(outcome.exception)}")

    print("5. A worker dies: that call fails, the next one runs on a new worker.")
    try:
        print(crash().result)
    except WorkerLostError as error:
        print(f"   {error}")
    print(f"   and then: {divide(6, 3).result}")
