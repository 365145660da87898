"""Large arguments and results lie in shared memory once, and nothing of them stays."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynenc import CycleDetectedError, RunnerError
from pynenc.blobs.directory import BlobDirectory
from pynenc.blobs.mapping import HUGE_BYTES
from pynenc.cli.show import blobs_in_words
from pynenc.exceptions import BlobLostError
from tests import large, tasks
from tests.conftest import PROJECT, Finished, wait_until
from tests.large import LARGE

COUNT = LARGE // 8
VALUES = np.arange(float(COUNT))


def blobs() -> dict[str, Any]:
    report = tasks.app.report()
    assert report is not None
    found: dict[str, Any] = report["blobs"]
    return found


def directory() -> BlobDirectory:
    return BlobDirectory(tasks.app.state_backend.path)


def stored_bytes() -> int:
    """The bytes that went through the database."""
    path = Path(tasks.app.state_backend.path)
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}*"))


ARRAYS = {
    "one row": VALUES,
    "rows and columns": VALUES.reshape(-1, 64),
    "Fortran order": np.asfortranarray(VALUES.reshape(-1, 64)),
    "not contiguous": VALUES.repeat(4).reshape(-1, 64)[::2, 3:],
    "structured": np.zeros(COUNT, dtype=[("name", "S8"), ("at", "<i4"), ("value", "<f8")]),
    "times": VALUES.astype("datetime64[s]"),
    "big endian": VALUES.astype(">f4"),
    "zero-dimensional": np.array(5.0),
    "empty": np.zeros((0, 7)),
    "empty rows of a large one": VALUES.reshape(-1, 64)[:0],
    "objects": np.array([{"a": 1}, None, "text", VALUES], dtype=object),
}


def test_arrays_come_back_as_they_are() -> None:
    for name, array in ARRAYS.items():
        check_same(name, array, large.same(array).result)


def check_same(name: str, array: Any, result: Any) -> None:
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    if name == "objects":
        assert list(result[:3]) == list(array[:3])
        assert np.array_equal(result[3], array[3])
    else:
        assert result.tobytes("A") == array.tobytes("A")
    if name in ("one row", "rows and columns", "Fortran order"):
        assert result.flags.f_contiguous == array.flags.f_contiguous
        assert not result.flags.writeable


VALUES_WITH_BYTES = {
    "bytes": b"x" * LARGE,
    "bytearray": bytearray(LARGE),
    "in a list": [b"y" * LARGE, 1, bytearray(b"z" * LARGE)],
    "deep in dictionaries": {"a": {"b": [{"c": b"q" * LARGE}]}, "d": VALUES.tolist()},
    "text": "ü" * LARGE,
    "a long list": list(range(100_000)),
}


def test_other_large_values_come_back_as_they_are() -> None:
    for name, value in VALUES_WITH_BYTES.items():
        result = large.same(value).result
        assert type(result) is type(value), name
        assert result == value, name
        assert large.same([value, value]).result == [value, value], name


def test_bytes_are_bytes_and_a_memoryview_comes_as_bytes() -> None:
    assert large.seen(b"x" * LARGE).result == ("bytes", LARGE, False)
    assert large.seen(bytearray(LARGE)).result == ("bytearray", LARGE, True)
    assert large.seen(memoryview(b"x" * LARGE)).result == ("bytes", LARGE, False)


@pytest.mark.parametrize("library", ["pandas", "pyarrow", "polars"])
def test_tables_travel_in_shared_memory(library: str) -> None:
    module = pytest.importorskip(library)
    made = {"pandas": "DataFrame", "pyarrow": "table", "polars": "DataFrame"}[library]
    table = getattr(module, made)(
        {"number": VALUES} if library == "polars" else {"number": VALUES, "name": ["n"] * COUNT}
    )
    assert large.same(table).result.equals(table)
    assert stored_bytes() < 8 * COUNT


def test_images_travel_in_shared_memory() -> None:
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray((VALUES.repeat(8) % 256).astype("uint8").reshape(1024, -1))
    assert large.same(picture).result.tobytes() == picture.tobytes()
    assert stored_bytes() < picture.width * picture.height


def test_large_values_do_not_go_through_the_database() -> None:
    values = VALUES.repeat(8)
    assert large.doubled(values).result.sum() == 2 * values.sum()
    assert stored_bytes() < values.nbytes // 8


def test_what_happens_to_an_argument_after_the_call_is_not_seen() -> None:
    values = VALUES.copy()
    invocation = large.total(values)
    values[:] = 0.0
    group = large.total.parallelize((values,) for values in changing())
    assert invocation.result == VALUES.sum()
    assert list(group.results) == [COUNT * number for number in range(4)]


def changing() -> Any:
    """The same array again and again, with other content."""
    values = np.zeros(COUNT)
    for number in range(4):
        values[:] = number
        yield values


@pytest.mark.parametrize("kind", ["list", "generator", "common", "put"])
def test_what_many_calls_share_is_written_once(kind: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    if kind == "list":
        group = large.total_behind.parallelize([(str(gate), VALUES)] * 64)
    elif kind == "generator":
        group = large.total_behind.parallelize((str(gate), VALUES) for _ in range(64))
    elif kind == "common":
        group = large.total_behind.parallelize([(str(gate),)] * 64, common_args={"values": VALUES})
    else:
        group = large.total_behind.parallelize([(str(gate), tasks.app.put(VALUES))] * 64)
    assert blobs()["blobs"] == 1
    assert blobs()["memory_bytes"] == LARGE
    gate.touch()
    assert list(group.results) == [VALUES.sum()] * 64
    gc.collect()
    tasks.add(1).result  # noqa: B018  # What was let go of is told with the next batch.
    wait_until(lambda: blobs()["blobs"] == 0, "the array is freed")


def test_a_long_submission_holds_only_what_may_still_be_shared() -> None:
    often = VALUES + 0.5
    calls = ((np.full(COUNT, float(one)), often) for one in range(120))
    results = large.total_of.parallelize(calls).results
    assert list(results) == [COUNT * one + often.sum() for one in range(120)]
    calls_of_list = [(values, often) for values in (VALUES * one for one in range(40))]
    assert (
        list(large.total_of.parallelize(calls_of_list * 2).results)
        == [VALUES.sum() * one + often.sum() for one in range(40)] * 2
    )
    wait_until(lambda: blobs()["blobs"] == 0, "all is freed")


def test_a_put_value_serves_many_calls_until_it_is_released() -> None:
    with tasks.app.put(VALUES) as reference:
        assert np.array_equal(reference.value, VALUES)
        assert large.total(reference).result == VALUES.sum()
        assert large.total_of(reference, own=[reference, reference]).result == 3 * VALUES.sum()
        assert blobs()["client"] == [1, LARGE]
        last = large.total(reference)
    assert last.result == VALUES.sum()
    wait_until(lambda: not list(directory().blobs()), "it is freed")
    with pytest.raises(TypeError, match="released"):
        large.total(reference)
    with pytest.raises(BlobLostError):
        reference.value  # noqa: B018
    small = tasks.app.put([1, 2])
    assert large.total(small).result == 3.0
    assert large.total(tasks.app.put(list(range(100_000)))).result == sum(range(100_000))


def test_a_put_value_is_nothing_but_an_argument() -> None:
    reference = tasks.app.put(VALUES)
    error = large.same([reference]).exception
    assert error is None  # As an argument it stands for the value.
    import pickle

    with pytest.raises(TypeError, match="argument of a call"):
        pickle.dumps(reference)
    assert "BlobRef" in repr(large.total(reference).arguments)


def test_writing_to_an_argument_says_what_to_do() -> None:
    invocation = large.change(VALUES)
    error = invocation.exception
    assert isinstance(error, ValueError)
    assert "copy_arguments=True" in str(error.__notes__)
    assert "copy_arguments=True" in str(error.__cause__)


def test_a_task_that_changes_its_arguments_gets_copies() -> None:
    values = VALUES.copy()
    assert list(large.change_copy.parallelize([(values,)] * 8).results) == [-1.0] * 8
    common = {"values": values, "other": values}
    assert list(large.change_copy.parallelize([()] * 8, common_args=common).results) == [-2.0] * 8
    assert list(large.change_copy_in_loop.parallelize([(values,)] * 4).results) == [-1.0] * 4
    assert large.change_copy(large.doubled(values)).result == -1.0
    assert values[0] == 0.0


def test_results_go_from_worker_to_worker() -> None:
    tasks.add(1).result  # noqa: B018
    invocation = large.doubled(large.doubled(large.filled(COUNT, 1.0)))
    assert large.total(invocation).result == 4.0 * COUNT
    assert large.total([invocation, invocation]).result == 8.0 * COUNT
    assert blobs()["results"] == [3, 3 * LARGE]


def test_coroutines_and_threads_take_large_values() -> None:
    common = {"values": VALUES}
    group = large.total_in_loop.parallelize([{"plus": float(one)} for one in range(8)], common_args=common)
    assert list(group.results) == [VALUES.sum() + one for one in range(8)]
    results = list(large.doubled_in_thread.parallelize([(VALUES,)] * 8).results)
    assert all(np.array_equal(one, 2 * VALUES) for one in results)


def test_a_call_inside_a_call_passes_large_values_on() -> None:
    assert large.total_by_child(VALUES).result == 2 * VALUES.sum() + COUNT
    assert large.cached_total(VALUES).result == large.cached_total(VALUES.copy()).result == VALUES.sum()
    wait_until(lambda: blobs()["blobs"] == 0, "all is freed")


@pytest.mark.parametrize("many", [False, True])
def test_circles_of_calls_with_large_arguments_are_seen(many: bool) -> None:
    assert isinstance(large.circle(VALUES, many).exception, CycleDetectedError)


def test_a_stream_runs_in_bounded_memory() -> None:
    most = 0
    for number, values in enumerate(large.doubled.stream((np.full(COUNT, float(one)),) for one in range(200))):
        assert values[0] == values[-1] == 2.0 * number
        if number % 20 == 0:
            most = max(most, blobs()["memory_bytes"])
    assert most <= 100 * LARGE  # Of 400 that went through it.
    del values
    wait_until(lambda: blobs()["blobs"] == 0, "all is freed")


def test_unordered_streams_and_those_that_end_early_leave_nothing() -> None:
    results = large.doubled.stream(((np.full(COUNT, float(one)),) for one in range(12)), ordered=False)
    assert sorted(float(values[0]) for values in results) == [2.0 * one for one in range(12)]
    for values in large.filled.stream((COUNT, float(one)) for one in range(100)):
        assert values[-1] == 0.0
        break


def test_segments_are_used_again_and_given_back_later() -> None:
    for one in range(10):
        assert large.total(VALUES + one).result == VALUES.sum() + one * COUNT
    assert blobs()["memory_bytes"] <= 5 * LARGE
    wait_until(lambda: blobs()["memory_bytes"] == 0, "warm segments are given back")


def test_segments_that_come_back_hold_what_was_written_last() -> None:
    """They are moved into huge pages while others write to them."""
    count = 3 * HUGE_BYTES // 8
    sums = large.total.stream(((np.full(count, float(one)), one) for one in range(120)), in_flight=3)
    assert list(sums) == [one * count + one for one in range(120)]
    for one in range(10):
        assert large.total(np.full(count, float(one))).result == one * count


def test_what_is_mapped_is_never_written_over() -> None:
    held = [large.filled(COUNT, float(one)).result for one in range(8)]
    tasks.app.purge()  # Nobody but this process refers to them.
    for one in range(20):
        large.filled(COUNT, -1.0 - one).result.sum()
    assert [values.min() for values in held] == [values.max() for values in held] == list(range(8))


@pytest.mark.parametrize("budget", [0, 3 * LARGE])
def test_what_finds_no_room_in_memory_goes_through_files(
    budget: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PYNENC__CONFIGBLOBS__MEMORY_BYTES", str(budget))
    group = large.doubled.parallelize([(VALUES + one,) for one in range(12)])
    results = list(group.results)
    assert all(np.array_equal(values, 2 * (VALUES + one)) for one, values in enumerate(results))
    assert blobs()["memory_bytes"] <= budget + 2 * LARGE
    assert sum("shared memory has no room" in one.message for one in caplog.records) == 1
    assert next(iter(large.doubled.stream((values,) for values in results)))[1] == 4.0
    del results


def test_results_outlive_their_supervisor() -> None:
    invocation = large.doubled(VALUES)
    assert invocation.result[1] == 2.0
    tasks.app.close()
    wait_until(lambda: not os.path.exists(directory().memory), "the supervisor has ended")
    again = tasks.app.get_invocation(invocation.invocation_id)
    assert np.array_equal(again.result, 2 * VALUES)
    assert large.total(again).result == 2 * VALUES.sum()
    with pytest.raises(BlobLostError, match="is not there any more"):
        again.arguments  # noqa: B018  # Large arguments are gone with the end of their call.
    tasks.app.purge()
    wait_until(lambda: not list(directory().blobs()), "purged with the rest")


def test_results_that_nobody_uses_make_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNENC__CONFIGBLOBS__MEMORY_BYTES", str(16 * LARGE))
    invocations = [large.filled(COUNT, float(one)) for one in range(14)]
    assert [one.wait() for one in invocations] == [True] * 14
    wait_until(lambda: blobs()["memory_bytes"] <= 8 * LARGE, "the oldest have been moved to files")
    assert [one.result[-1] for one in invocations] == list(range(14))


def test_calls_that_fail_before_they_are_sent_leave_nothing() -> None:
    tasks.add(1).result  # noqa: B018
    with pytest.raises(TypeError, match="cannot be pickled"):
        large.total_of(VALUES, own=threading.Lock())
    with pytest.raises(TypeError, match="cannot be pickled"):
        large.total_of.parallelize([(VALUES, 1), (VALUES + 1, threading.Lock())])
    wait_until(lambda: blobs()["blobs"] == 0 and not list(directory().blobs()), "nothing is left")


def test_purge_and_cancelled_calls_free_what_they_referred_to(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    held = [tasks.wait_for(str(gate)) for _ in range(2)]
    invocation = large.total(VALUES)
    with pytest.raises(RunnerError):
        tasks.app.purge()
    invocation.cancel()
    wait_until(lambda: blobs()["blobs"] == 0, "a cancelled call's arguments are freed")
    gate.touch()
    assert all(one.wait() for one in held)


def test_the_status_says_how_many_large_values_there_are() -> None:
    reference = tasks.app.put(VALUES)
    assert large.filled(COUNT, 1.0).wait()
    said = blobs_in_words(blobs())
    assert said.startswith("2 large values: 2.1 MB in shared memory (of ")
    assert said.endswith("unfinished calls to 0 (0 bytes), stored results to 1 (1.0 MB), clients to 1 (1.0 MB)")
    del reference


def test_a_small_container_works(tmp_path: Path) -> None:
    """With a /dev/shm of 8 MB, of which the configuration knows nothing."""
    program = (
        "from tests import large, tasks; import numpy as np\n"
        "tasks.use_fresh_configuration()\n"
        "arrays = [np.full(1 << 17, float(one)) for one in range(24)]\n"
        "assert [one[-1] for one in large.doubled.parallelize([(one,) for one in arrays]).results] == "
        "[2.0 * one for one in range(24)]\n"
        "print('worked')\n"
    )
    command = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=8m tmpfs /dev/shm && exec "$0" -c "$1"']
    if subprocess.run([*command[:2], "true"], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    finished = subprocess.run(
        [*command, sys.executable, program], cwd=PROJECT, capture_output=True, text=True, timeout=50
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "worked\n"
    assert "shared memory has no room" in finished.stderr


def test_synchronous_mode_takes_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYNENC__DEV_MODE_FORCE_SYNC_TASKS", "1")
    reference = tasks.app.put(VALUES)
    assert large.total(reference).result == VALUES.sum()
    assert np.array_equal(large.same(VALUES).result, VALUES)
    assert large.change_copy(VALUES).result == -1.0


def test_a_script_that_is_killed_leaves_nothing(run_python: Callable[..., Finished]) -> None:
    files = {
        "killed.py": "import os, signal, numpy as np\nfrom tests import large, tasks\n"
        "kept = tasks.app.put(np.arange(1 << 17))\nlarge.total(kept).result\n"
        "large.filled.parallelize([(1 << 17, 1.0)] * 20)\ntasks.app._cluster.sync()\nos.kill(os.getpid(), signal.SIGKILL)\n"
    }
    finished = run_python(files, "killed.py", PYTHONPATH=str(PROJECT))
    assert finished.code == -9, finished.err
    wait_until(lambda: not os.path.exists(directory().memory), "the supervisor has cleaned up")
