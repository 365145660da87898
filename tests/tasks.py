"""The tasks that tests call. One app, made fresh for each test by `use_fresh_configuration`."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pynenc import Pynenc, Task
from pynenc.conf.config_pynenc import ConfigPynenc

app = Pynenc("tests")


def use_fresh_configuration() -> None:
    """Read the configuration anew; the environment has changed."""
    app.conf = ConfigPynenc({"app_id": "tests"})
    for name in ("state_backend", "_cluster", "broker", "orchestrator"):
        app.__dict__.pop(name, None)


def close() -> None:
    app.close()


@app.task
def add(x: int, y: int = 0) -> int:
    return x + y


@app.task
def echo(value: Any) -> Any:
    return value


@app.task
def total(*numbers: int, **named: int) -> int:
    return sum(numbers) + sum(named.values())


@app.task
def keyword_only(*, x: int) -> int:
    return x


@app.task
def fail(message: str) -> None:
    raise ValueError(message)


@app.task
def fail_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


class Unfriendly(Exception):
    """Can be pickled, but not read back."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@app.task
def fail_with(kind: str) -> None:
    if kind == "stop":
        raise StopIteration(7)
    if kind == "unfriendly":
        raise Unfriendly(1, 2)
    if kind == "unpicklable":
        error = ValueError("holds a lock")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error
    if kind == "mute":
        raise Mute
    if kind == "exit":
        sys.exit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "chained":
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner


@app.task
def give_lock() -> Any:
    return threading.Lock()


@app.task
def give_lambda() -> Any:
    return lambda x: x + 1


@app.task
def apply(func: Any, x: int) -> Any:
    return func(x)


@app.task
def append_to(items: list[int]) -> list[int]:
    items.append(1)
    return items


_kept: list[int] = []


@app.task
def keep(x: int) -> list[int]:
    _kept.append(x)
    return _kept


@app.task
def worker_pid() -> int:
    return os.getpid()


@app.task
def who() -> tuple[str, str]:
    return who.invocation.invocation_id, str(who.invocation.arguments)


@app.task
def working_place() -> tuple[str, list[str]]:
    return os.getcwd(), sys.path


@app.task
def environment(name: str) -> str | None:
    return os.environ.get(name)


@app.task
def speak() -> None:
    print("spoken to stdout")
    print("spoken to stderr", file=sys.stderr)


@app.task
def log() -> None:
    log.logger.warning("from inside")


@app.task
def wait_for(path: str) -> str:
    """Run until a file is there: the test decides when."""
    while not Path(path).exists():
        time.sleep(0.002)
    return path


@app.task
def begin_and_wait_for(begun: str, path: str) -> str:
    Path(begun).touch()
    return wait_for.func(path)


@app.task
def die(signal_number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signal_number)


@app.task
def die_at(x: int, fatal: int) -> int:
    """As quick as a call can be, but for one."""
    if x == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


@app.task
def die_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@app.task(rerun_on_worker_loss=False)
def die_without_rerun(path: str) -> None:
    with open(path, "a") as file:
        file.write("ran\n")
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def exit_hard(code: int) -> None:
    os._exit(code)


@app.task
def note(path: str, x: int) -> int:
    """Leave a mark for each run, so that a test can count them."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{x}\n".encode())
    os.close(fd)
    return x


@app.task
def note_behind(gate: str, path: str, x: int) -> int:
    wait_for.func(gate)
    return note.func(path, x)


@app.task
def burn(seconds: float) -> float:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return seconds


@app.task
async def slowly_double(x: int) -> int:
    import asyncio  # Most tests need no event loop, and their workers begin sooner without.

    await asyncio.sleep(0)
    return 2 * x


@app.task
def children(x: int) -> tuple[Any, Any]:
    """Waits for none of them."""
    return add(x, 1), add.parallelize((x, y) for y in range(3))


@app.task
def fire_children(x: int) -> tuple[int, str]:
    """Wait for neither of two children; the second one is collected, since the first is under way."""
    add(x, 0)
    return os.getpid(), add(x, 1).invocation_id


@app.task
def crowd(path: str) -> int:
    """Return only when another call of this task runs at the same time."""
    mine = Path(path) / str(os.getpid())
    mine.touch()
    while len(list(Path(path).iterdir())) < 2:
        time.sleep(0.002)
    return os.getpid()


def plain(x: int) -> int:
    return 3 * x


made_of_plain = app.task(plain)

ALL: list[Task[..., Any]] = list(app.tasks.values())


@app.task
def sleep_for(seconds: float, x: int) -> int:
    time.sleep(seconds)
    return x


@app.task(rerun_on_worker_loss=False)
def hold_without_rerun(log: str, gate: str) -> None:
    with open(log, "a") as file:
        file.write("ran\n")
    while not Path(gate).exists():
        time.sleep(0.002)


@app.task
def alone(log: str) -> str:
    """Ends when it runs the second time; says whether the process of the first time was gone by then."""
    path = Path(log)
    before = path.read_text().split() if path.exists() else []
    if before:
        import psutil

        try:
            return "was alone" if psutil.Process(int(before[0])).status() == psutil.STATUS_ZOMBIE else "was not alone"
        except psutil.NoSuchProcess:
            return "was alone"
    path.write_text(f"{os.getpid()} begins\n")
    while True:
        time.sleep(1)
