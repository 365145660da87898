"""How exceptions travel, whatever their own code does."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from pynenc import SerializationError
from pynenc.execution import Raised, restore
from tests import odd


def leaves_when_read(how: type[BaseException]) -> Raised:
    """An exception that was well where it was raised, and wants to leave the program that reads it."""
    return Raised("Hostile", "hostile", "", pickle.dumps(odd.Hostile("read", how)))


@pytest.mark.parametrize("how", [ValueError, SystemExit, GeneratorExit, odd.Hostile])
def test_an_exception_that_cannot_be_read_is_told_of(how: type[BaseException]) -> None:
    error = restore(leaves_when_read(how))
    assert type(error) is SerializationError
    assert f"cannot be unpickled here: {how.__name__}: " in str(error)


def test_ctrl_c_while_an_exception_is_read_is_the_scripts() -> None:
    with pytest.raises(KeyboardInterrupt):
        restore(leaves_when_read(KeyboardInterrupt))


def test_an_interrupt_in_another_thread_is_not_ctrl_c() -> None:
    with ThreadPoolExecutor(1) as thread:
        assert type(thread.submit(restore, leaves_when_read(KeyboardInterrupt)).result()) is SerializationError
