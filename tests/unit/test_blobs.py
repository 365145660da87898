"""Large values without processes: what becomes a blob, where it lies, who may have it."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pynenc import context
from pynenc.blobs import budget, directory, reading
from pynenc.blobs.budget import Budget, memory_budget, usable_memory_bytes
from pynenc.blobs.directory import TOKEN_BYTES, BlobDirectory
from pynenc.blobs.freezing import Freezer, holds_large_bytes
from pynenc.blobs.mapping import HUGE_BYTES, MIN_HUGE_BYTES, make_huge
from pynenc.blobs.references import Reference, from_column, refers, split_results, to_column, with_references
from pynenc.blobs.writing import Writer
from pynenc.exceptions import BlobLostError, ProtocolError, SerializationError
from pynenc.protocol.extras import NONE, Extras
from pynenc.protocol.messages import Packing, Results, rows_payload
from pynenc.serializer import Frozen, Referring, loads
from pynenc.supervisor.references import Holder, Kind, References
from pynenc.supervisor.segments import READY_BYTES, WarmSegments

THRESHOLD = 1 << 16
VALUES = np.arange(float(THRESHOLD))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[BlobDirectory]:
    found = BlobDirectory(str(tmp_path / "app.db"))
    context.databases[str(tmp_path / "app.db")] = None
    yield found
    del context.databases[str(tmp_path / "app.db")]
    found.remove_all()
    assert not os.path.exists(found.memory)


@pytest.fixture
def writer(place: BlobDirectory) -> Iterator[Writer]:
    made = Writer(place, 1 << 30)
    yield made
    made.close()


@pytest.fixture
def freezer(writer: Writer) -> Freezer:
    return Freezer(writer, THRESHOLD)


LARGE = b"x" * THRESHOLD


@pytest.mark.parametrize(
    ("value", "blobs"),
    [
        ((VALUES, 1), 1),
        ([VALUES, VALUES[::-1], VALUES[: THRESHOLD // 2]], 3),
        (VALUES[: THRESHOLD // 8 - 1], 0),
        (VALUES[: THRESHOLD // 8], 1),
        (LARGE, 1),
        (LARGE[1:], 0),
        ({"deep": {"er": [LARGE, bytearray(LARGE), VALUES]}}, 3),
        ("ü" * THRESHOLD, 1),
        (list(range(THRESHOLD)), 0),
        ((lambda: 5, VALUES, LARGE), 2),
        ([np.ones((0, 5)), np.array([VALUES, None], dtype=object)], 1),
    ],
)
def test_large_buffers_and_bytes_become_blobs(freezer: Freezer, value: Any, blobs: int) -> None:
    frozen = freezer.frozen(value)
    assert isinstance(frozen, Referring) == refers(frozen) == bool(blobs)
    if isinstance(frozen, Referring):
        assert len(frozen.references) == blobs
    read = loads(frozen)
    plain = loads(pickle.dumps(value, 5)) if not callable(value[0] if isinstance(value, tuple) else None) else read
    assert repr(read) == repr(plain)
    assert type(read) is type(value)


def test_what_cannot_be_pickled_leaves_nothing(freezer: Freezer, place: BlobDirectory) -> None:
    with pytest.raises(SerializationError):
        freezer.frozen([VALUES, threading.Lock()])
    with pytest.raises(SerializationError):
        freezer.frozen([LARGE, threading.Lock()])
    assert not list(place.blobs())


def test_readers_share_one_mapping_and_cannot_write(freezer: Freezer) -> None:
    frozen = freezer.frozen((VALUES, LARGE))
    first, second = loads(frozen), loads(frozen)
    assert np.shares_memory(first[0], second[0])
    with pytest.raises(ValueError, match="read-only"):
        first[0][0] = 1.0
    context.collector.copying = True
    try:
        copied = loads(frozen)[0]
    finally:
        context.collector.copying = False
    copied[0] = 1.0
    assert first[0][0] == 0.0


def test_the_frames_of_a_pickle_tell_where_large_bytes_are() -> None:
    for value in (LARGE, bytearray(LARGE), "x" * THRESHOLD, [1, {"a": LARGE}], [list(range(THRESHOLD)), LARGE]):
        assert holds_large_bytes(pickle.dumps(value, 5), THRESHOLD)
    for value in (LARGE[1:], list(range(THRESHOLD)), [LARGE[1:]] * 3, {"a": "b"}, "ü" * (THRESHOLD // 2 - 1)):
        assert not holds_large_bytes(pickle.dumps(value, 5), THRESHOLD)


def test_a_segment_is_recycled_only_when_nobody_maps_it(place: BlobDirectory, writer: Writer) -> None:
    reference = writer.write(memoryview(LARGE))
    view = reading.view_of(reference)
    assert place.free(reference.name)
    assert not place.recycle(reference.name)
    assert place.open(reference.name) is None
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # It holds the mapping, too.
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    del view
    assert not place.recycle(reference.name)
    os.close(write_end)
    os.waitpid(child, 0)
    os.close(read_end)
    assert place.recycle(reference.name)
    (segment,) = place.segments()
    assert segment.size == THRESHOLD
    smaller = writer.write(memoryview(LARGE[1000:]))
    assert place.segments() == []
    assert bytes(reading.view_of(smaller)) == LARGE[1000:]


def test_whoever_looks_at_a_segment_while_another_does_harms_nobody(
    place: BlobDirectory, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel signals whoever has a lease on a file when another one opens it."""
    reference = writer.write(memoryview(LARGE))
    assert place.free(reference.name)
    child = os.fork()
    if child == 0:
        real = fcntl.fcntl

        def look_meanwhile(fd: int, command: int, argument: int) -> Any:
            done = real(fd, command, argument)
            if argument == fcntl.F_WRLCK:
                other = os.fork()
                if other == 0:
                    os._exit(1 if place.recycle(reference.name) else 0)  # Nor does it wait.
                if os.waitpid(other, 0)[1]:
                    os._exit(2)
            return done

        monkeypatch.setattr(fcntl, "fcntl", look_meanwhile)
        os._exit(0 if place.recycle(reference.name) else 3)
    assert os.waitpid(child, 0)[1] == 0
    assert len(place.segments()) == 1


def pages_of(address: int) -> dict[str, int]:
    """What the system says of the mapping that begins at an address, in KiB."""
    begins, found = f"{address:x}-", {}
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(begins):
            for entry in lines:
                name, value, *unit = entry.split()
                if unit != ["kB"]:
                    return found
                found[name.rstrip(":")] = int(value)
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux moves pages")
@pytest.mark.parametrize("size", [MIN_HUGE_BYTES, 3 * HUGE_BYTES + 12_345])
def test_a_segment_in_huge_pages_holds_the_same_bytes(place: BlobDirectory, writer: Writer, size: int) -> None:
    values = np.random.default_rng(size).bytes(size)
    reference = writer.write(memoryview(values))
    seen = reading.view_of(reference)
    with open(place.path_in_memory(reference.name), "r+b") as file:
        is_huge = make_huge(file.fileno())
    assert seen == values
    view = np.frombuffer(seen, np.uint8)
    address = reading.address_of(seen)
    assert address % HUGE_BYTES == 0
    if is_huge and (huge := pages_of(address).get("ShmemPmdMapped")) is not None:
        assert view.sum(dtype=int) == sum(values)
        assert huge * 1024 in (0, size // HUGE_BYTES * HUGE_BYTES)  # The system may have had no huge page to give.
    with open(place.path_in_memory(reference.name), "r+b") as file:
        file.write(b"other")
    assert bytes(seen[:5]) == b"other"
    assert seen[5:] == values[5:]


def test_a_segment_that_was_made_ready_serves_the_next_blob(place: BlobDirectory, writer: Writer) -> None:
    assert place.make_memory()
    place.make_segment(THRESHOLD)
    (segment,) = place.segments()
    assert os.stat(segment.path).st_blocks * 512 == segment.size == THRESHOLD
    reference = writer.write(memoryview(LARGE))
    assert not place.segments()
    assert bytes(reading.view_of(reference)) == LARGE
    place.make_segment(1 << 60)  # There is no room for it.
    assert not place.segments()


@pytest.fixture
def warm(place: BlobDirectory) -> Iterator[WarmSegments]:
    assert place.make_memory()
    made = WarmSegments(place, 1 << 30)
    yield made
    made.close()


def test_results_of_one_size_have_segments_made_ready(place: BlobDirectory, warm: WarmSegments) -> None:
    def comes(size: int) -> bool:
        warm.result_came(size)
        is_needed = warm.make_ready()
        warm.close()
        return is_needed

    assert not comes(READY_BYTES)  # It may be the only one.
    assert comes(READY_BYTES)
    assert [one.size for one in place.segments()] == [READY_BYTES]
    assert not comes(READY_BYTES)
    os.unlink(place.segments()[0].path)  # As a writer takes it.
    assert comes(READY_BYTES)
    assert len(place.segments()) == 1
    assert not comes(READY_BYTES // 2)
    assert not comes(READY_BYTES // 2)  # Small ones take no time.
    assert not comes(1 << 29)
    assert not comes(1 << 29)  # There is no room for what is kept of them beside it.
    assert len(place.segments()) == 1


@pytest.mark.parametrize("lease", [None, 99_999])
def test_where_nobody_can_tell_who_maps_it_a_segment_is_not_recycled(
    lease: int | None, place: BlobDirectory, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_F_SETLEASE", lease)
    reference = writer.write(memoryview(LARGE))
    view = reading.view_of(reference)
    writer.discard([reference])
    assert sorted(os.listdir(place.memory)) == [f"{reference.name[:8].hex()}.alive"]
    assert bytes(view) == LARGE


def test_a_much_larger_segment_is_left_to_others(place: BlobDirectory, writer: Writer) -> None:
    reference = writer.write(memoryview(LARGE * 4))
    writer.discard([reference])
    writer.write(memoryview(LARGE))
    assert len(place.segments()) == 1


def test_what_is_gone_or_cut_off_is_told(place: BlobDirectory, writer: Writer) -> None:
    reference = writer.write(memoryview(LARGE))
    os.truncate(place.path_in_memory(reference.name), 100)  # To touch what is missing would end this process.
    with pytest.raises(BlobLostError, match="65,536 bytes"):
        reading.view_of(reference)
    place.free(reference.name)
    with pytest.raises(BlobLostError):
        reading.view_of(reference)
    error = pickle.loads(pickle.dumps(BlobLostError("ab", 5)))
    assert (error.name, error.size) == ("ab", 5)


def test_a_directory_of_somebody_else_is_not_used(place: BlobDirectory, writer: Writer) -> None:
    os.mkdir(place.memory, 0o777)
    os.chmod(place.memory, 0o777)
    reference = writer.write(memoryview(LARGE))
    assert os.listdir(place.memory) == []
    assert os.path.exists(place.path_in_files(reference.name))
    assert bytes(reading.view_of(reference)) == LARGE
    os.rmdir(place.memory)


def test_a_link_in_the_place_of_a_blob_is_not_followed(place: BlobDirectory, writer: Writer, tmp_path: Path) -> None:
    reference = writer.write(memoryview(LARGE))
    (tmp_path / "other").write_bytes(LARGE)
    os.unlink(place.path_in_memory(reference.name))
    os.symlink(tmp_path / "other", place.path_in_memory(reference.name))
    with pytest.raises(OSError, match="symbolic links"):
        reading.view_of(reference)


def test_what_finds_no_room_anywhere_is_an_error(
    place: BlobDirectory, freezer: Freezer, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if len(data) < 3 * THRESHOLD:
            return written(fd, data, at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OSError, match="No space"):
        freezer.frozen((VALUES[: THRESHOLD // 4], VALUES))
    assert not list(place.blobs())


def test_a_budget_is_what_is_left_of_it_and_of_the_file_system(
    place: BlobDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.make_memory()
    writer = Writer(place, 10 * THRESHOLD)
    held = [writer.write(memoryview(LARGE)) for _ in range(8)]
    mine = Budget(place, 10 * THRESHOLD)
    assert mine.free_bytes() == 2 * THRESHOLD
    assert not mine.takes(3 * THRESHOLD)
    assert mine.takes(THRESHOLD)
    writer.discard(held)
    assert mine.free_bytes() == 2 * THRESHOLD  # They are warm.
    large = writer.write(memoryview(LARGE * 6))
    assert os.path.exists(place.path_in_memory(large.name)), "warm segments make room"
    monkeypatch.setattr(budget, "SHARED_MEMORY", str(place.files) + "-nowhere")
    assert mine.free_bytes() == 0
    writer.close()
    assert memory_budget(0.5, None) == int(0.5 * usable_memory_bytes())
    assert memory_budget(0.5, 17) == 17


def test_without_shared_memory_there_are_files(
    place: BlobDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(directory, "SHARED_MEMORY", str(place.files) + "-nowhere")
    writer = Writer(place, 1 << 30)
    references = [writer.write(memoryview(LARGE)) for _ in range(2)]
    assert all(os.path.exists(place.path_in_files(reference.name)) for reference in references)
    assert len(caplog.records) == 1
    assert bytes(reading.view_of(references[0])) == LARGE
    writer.discard(references)
    writer.close()
    assert not list(place.blobs())


def test_a_blob_keeps_its_name_when_it_moves(place: BlobDirectory, writer: Writer) -> None:
    reference = writer.write(memoryview(LARGE))
    assert place.copy_to_files(reference.name)
    assert place.leave_memory(reference.name)
    assert not place.copy_to_files(reference.name)
    assert bytes(reading.view_of(reference)) == LARGE
    assert place.sizes()[1] >= THRESHOLD
    place.free(reference.name)
    assert not list(place.blobs())


def test_a_client_that_leaves_harms_nothing_that_moves_to_files_just_then(
    place: BlobDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor ends at once, and the script with it: each takes away what nobody needs."""
    writer = Writer(place, 1 << 30)
    reference = writer.write(memoryview(LARGE))
    copy, make_files = directory._copy, place.make_files

    def leave_while_copying(source: int, target: int) -> None:
        copy(source, target)
        writer.close()
        place.remove([])

    def leave_before_copying() -> None:
        make_files()
        place.remove([])
        monkeypatch.setattr(place, "make_files", make_files)

    monkeypatch.setattr(directory, "_copy", leave_while_copying)
    monkeypatch.setattr(place, "make_files", leave_before_copying)
    assert place.copy_to_files(reference.name)
    assert place.leave_memory(reference.name)
    assert Path(place.path_in_files(reference.name)).read_bytes() == LARGE
    place.free(reference.name)


def test_a_forked_child_writes_under_its_own_name(place: BlobDirectory, writer: Writer) -> None:
    writer.write(memoryview(LARGE))
    child = os.fork()
    if child == 0:
        writer.write(memoryview(LARGE))
        os._exit(0)
    os.waitpid(child, 0)
    names = list(place.blobs())
    assert len({name[:8] for name in names}) == 2
    living = place.living_writers()
    assert sorted(name[:8] in living for name in names) == [False, True]


ROWS = rows_payload([b"row"])


def test_columns_of_references_and_results_that_carry_them() -> None:
    references = [Reference(bytes(range(16)), 5), Reference(bytes(16), 1 << 40)]
    assert from_column(to_column(references)) == references
    packing, payload = with_references(Packing.ROWS, ROWS, references)
    results = Results(1, 0, 1, 1, packing, 0.0, 0.0, b"", payload)
    stripped, found = split_results(results)
    assert (stripped.packing, stripped.payload, found) == (Packing.ROWS, ROWS, references)
    for broken in (payload[:3], payload[:20], b"\xff" * 8):
        with pytest.raises(ProtocolError):
            split_results(results._replace(payload=broken))
    with pytest.raises(ProtocolError):
        split_results(results._replace(packing=0x83))


def test_extras_of_older_databases_are_read() -> None:
    extras = Extras(running=b"k" * 16, common=7)
    body = extras.to_bytes()
    assert Extras.from_bytes(body, 1) == extras
    with_blobs = extras._replace(blobs=to_column([Reference(bytes(16), 5)]))
    assert with_blobs.to_bytes()[: len(body)] == body
    assert Extras.from_bytes(with_blobs.to_bytes(), 1) == with_blobs
    assert Extras.from_bytes(NONE._replace(blobs=with_blobs.blobs).to_bytes(), 3).blobs == with_blobs.blobs
    with pytest.raises(ProtocolError):
        Extras.from_bytes(with_blobs.to_bytes()[:-1], 1)


def test_references_are_counted_by_holder() -> None:
    references = References()
    one, other = Reference(b"1" * 16, 10), Reference(b"2" * 16, 20)
    batch, stored, client = Holder(Kind.ARGUMENTS, 1), Holder(Kind.RESULTS, 1), Holder(Kind.CLIENT, 1)
    references.hold(batch, [one, other])
    references.hold(stored, [one])
    references.hold(client, [other])
    assert references.counts() == {Kind.ARGUMENTS: (2, 30), Kind.RESULTS: (1, 10), Kind.CLIENT: (1, 20)}
    assert references.release(batch) == []
    assert references.release(batch) == []
    assert references.are_kept(one.name)
    assert references.are_results(one.name)
    assert not references.are_kept(other.name)
    assert references.release(client, [one.name]) == []
    assert references.release(client, [other.name, other.name]) == [other.name]
    assert references.release_all(Kind.RESULTS) == [one.name]
    assert len(references) == 0


def test_small_values_are_frozen_as_ever(freezer: Freezer, place: BlobDirectory) -> None:
    assert freezer.freeze(5) == 5
    frozen = freezer.freeze([1, 2])
    assert type(frozen) is Frozen
    assert not os.path.exists(place.memory)


def test_a_state_directory_that_was_taken_away_is_passed_over(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An app of this process may have had one that is gone."""
    monkeypatch.setattr(context, "databases", {str(tmp_path / "gone" / "app.db"): None, **context.databases})
    reference = writer.write(memoryview(LARGE))
    assert bytes(reading.view_of(reference)) == LARGE


def test_writers_begin_while_others_take_the_empty_directories_away(place: BlobDirectory) -> None:
    """As scripts do that begin while the supervisor of others ends."""
    failures: list[OSError] = []

    def begin_and_end() -> None:
        for _ in range(500):
            token = os.urandom(TOKEN_BYTES)
            try:
                mark = place.announce(token, is_worker=False)
            except OSError as error:
                failures.append(error)
                continue
            assert token in place.living_writers()
            place.forget_writer(token, is_worker=False)
            os.close(mark)

    writers = [threading.Thread(target=begin_and_end) for _ in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        place.remove_empty()
    place.remove_empty()
    assert not failures
