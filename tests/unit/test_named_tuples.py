"""Named tuples of ours are those of `typing`, but for what it costs to define them."""

from __future__ import annotations

import pickle
import typing

import pytest

from pynenc.named_tuples import NamedTuple


class Point(NamedTuple):
    """A place."""

    x: int
    y: int = 2

    @property
    def total(self) -> int:
        """Both together."""
        return self.x + self.y

    @classmethod
    def origin(cls) -> Point:
        """Where both are nothing."""
        return cls(0, 0)


class Same(typing.NamedTuple):
    """A place."""

    x: int
    y: int = 2


def test_they_are_tuples_with_names_defaults_and_methods() -> None:
    point = Point(1)
    assert point == (1, 2) == Point(x=1, y=2)
    assert (point.x, point.y, point.total, Point.origin()) == (1, 2, 3, (0, 0))
    assert repr(point) == "Point(x=1, y=2)"
    assert point._replace(x=5) == Point(5, 2)
    assert pickle.loads(pickle.dumps(point)) == point
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        Point()  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        point.x = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "name", ["__doc__", "__module__", "__annotations__", "_fields", "_field_defaults", "__match_args__"]
)
def test_they_say_of_themselves_what_those_of_typing_do(name: str) -> None:
    mine, theirs = getattr(Point, name), getattr(Same, name)
    assert mine == ({"x": "int", "y": "int"} if name == "__annotations__" else theirs)
    assert typing.get_type_hints(Point) == typing.get_type_hints(Same)
