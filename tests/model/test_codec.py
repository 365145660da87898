"""Bytes and back: frames in any pieces, messages, and the column codec."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pynenc import serializer
from pynenc.exceptions import ProtocolError
from pynenc.protocol import extras, messages
from pynenc.protocol.frames import HEADER_BYTES, FrameReader, frame
from pynenc.protocol.messages import Batch, Ending, Failure, Kind, Lease, Packing, Results

PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=300), st.binary(max_size=300)
)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=3), st.dictionaries(st.text(max_size=5), PLAIN, max_size=3))


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=20), st.data())
def test_frames_come_whole_however_the_bytes_are_cut(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(frame(kind, body) for kind, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = FrameReader()
    received = []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.feed(stream[start:stop])
    assert received == sent


def test_a_frame_that_announces_too_much_is_refused() -> None:
    with pytest.raises(ProtocolError, match="at most 100"):
        FrameReader(100).feed(frame(1, b"x" * 101)[:HEADER_BYTES])


@given(st.binary(max_size=300), st.sampled_from([Batch, Results, Failure, Lease]))
@settings(max_examples=500)
def test_bytes_that_are_no_message_are_refused_and_nothing_worse(body: bytes, kind) -> None:  # type: ignore[no-untyped-def]
    try:
        kind.from_body(body)
    except ProtocolError:
        pass


def test_a_failure_whose_words_are_no_text_travels_as_what_can_be_stored() -> None:
    failure = Failure(1 << 29, 1, 2, 7, 3, Ending.FAILED, -1.0, 1.5, 2.5, "OSError", "no file \udc80", "", b"")
    [(_, body)] = FrameReader().feed(failure.to_frame())
    assert Failure.from_body(body).message == "no file \\udc80"


@given(st.lists(VALUES, min_size=1, max_size=60))
def test_values_come_back_from_any_packing(values: list[object]) -> None:
    packing, payload = serializer.pack([serializer.freeze(value) for value in values])
    assert serializer.unpack(packing, payload) == values


@given(
    st.integers(0, 3).flatmap(lambda width: st.lists(st.tuples(*[VALUES] * width), min_size=1, max_size=60)), st.data()
)
def test_any_cut_of_a_batch_gives_the_arguments_of_its_calls(
    calls: list[tuple[object, ...]], data: st.DataObject
) -> None:
    entries = [call if serializer.all_plain(call) else serializer.Frozen(serializer.dumps(call)) for call in calls]
    packing, payload = serializer.pack_arguments(entries)
    first = data.draw(st.integers(0, len(calls) - 1))
    stop = data.draw(st.integers(first + 1, len(calls)))
    part = messages.slice_payload(packing, payload, first, stop)
    leased = serializer.leased_arguments(packing, part, first, stop)
    assert [pickle.loads(one) if type(one) is serializer.Frozen else one for one in leased] == calls[first:stop]
    stored = serializer.stored_arguments(packing, payload, first)
    assert (pickle.loads(stored) if type(stored) is serializer.Frozen else stored) == calls[first]


@given(st.integers(1, 1 << 24 - 1), st.integers(0, (1 << 29) - 1), st.integers(0, 511))
def test_an_invocation_id_leads_back_to_its_number(client: int, batch: int, index: int) -> None:
    number = messages.invocation_number(messages.first_batch_of(client) + batch, index)
    assert number < 1 << 63
    assert messages.parse_invocation_id(messages.format_invocation_id(number)) == number
    assert messages.split_number(number) == (messages.first_batch_of(client) + batch, index)


@given(st.text())
def test_any_text_is_an_id_or_is_not(text: str) -> None:
    number = messages.parse_invocation_id(text)
    assert number is None or messages.parse_invocation_id(messages.format_invocation_id(number)) == number


def test_messages_come_back_as_they_were() -> None:
    for message, kind in [
        (Batch(1 << 29, 2, 3, 4, 5, 6.5, Packing.ROWS, messages.rows_payload([b"a", b"", b"c"])), Kind.BATCH),
        (Batch(1 << 29, 2, 3, 4, 5, 6.5, Packing.COLUMN, b"abc", b"xy"), Kind.BATCH),
        (Results(1 << 29, 1, 3, 7, Packing.COLUMN, 1.5, 0.25, b"12345678" * 2, b"xyz"), Kind.RESULTS),
        (
            Failure(1 << 29, 1, 2, 7, 3, Ending.FAILED, -1.0, 1.5, 2.5, "ValueError", "bäd", "Traceback", b"pickle"),
            Kind.FAILURE,
        ),
        (Lease(9, 1 << 29, 2, 0, 3, 4, 7, Packing.COLUMNS, b"abc"), Kind.LEASE),
        (Lease(9, 1 << 29, 2, 0, 3, 4, 7, Packing.COLUMNS, b"abc", b"above", b"/a place"), Kind.LEASE),
    ]:
        [(found, body)] = FrameReader().feed(message.to_frame())  # type: ignore[attr-defined]
        assert found == kind
        assert type(message).from_body(body) == message  # type: ignore[attr-defined]


KEYS = st.binary(min_size=extras.KEY_BYTES, max_size=extras.KEY_BYTES)


@st.composite
def extras_of_a_batch(draw: st.DrawFn) -> tuple[int, extras.Extras]:
    count = draw(st.integers(1, 6))
    columns = {
        name: b"".join(draw(st.lists(KEYS, min_size=count, max_size=count))) if draw(st.booleans()) else b""
        for name in ("running", "registration", "arguments", "cache")
    }
    dependencies = draw(
        st.lists(
            st.builds(
                lambda index, batch, first, calls: extras.Dependency(index, batch, first, first + calls),
                st.integers(0, count - 1),
                st.integers(0, (1 << 53) - 1),
                st.integers(0, 511),
                st.integers(1, 512),
            ),
            max_size=4,
        )
    )
    return count, extras.Extras(
        **columns,
        directory=draw(st.sampled_from([b"", b"", b"/", b"/a place/\xff", extras.GONE])),
        items=draw(st.sampled_from([b"", b"item" * count])),
        dependencies=extras.dependencies_column(dependencies),
        common=draw(st.integers(0, (1 << 63) - 1)),
    )


@given(extras_of_a_batch())
def test_extras_come_back_as_they_were(made: tuple[int, extras.Extras]) -> None:
    count, sent = made
    assert extras.Extras.from_bytes(sent.to_bytes(), count) == sent


@given(st.one_of(st.binary(max_size=120), extras_of_a_batch().map(lambda made: made[1].to_bytes()[:-1])))
def test_bytes_that_are_no_extras_are_refused(body: bytes) -> None:
    if not body:
        assert extras.Extras.from_bytes(body, 3) == extras.NONE
        return
    with pytest.raises(ProtocolError):
        extras.Extras.from_bytes(body, 3)


@given(st.lists(KEYS, min_size=1, max_size=5), st.data())
def test_a_single_key_holds_for_all_calls(keys: list[bytes], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(keys) - 1))
    assert extras.key_at(b"".join(keys), index) == keys[index if len(keys) > 1 else 0]
