"""Named tuples that are cheap to define.

`typing.NamedTuple` compiles the annotation of each field, and `collections.namedtuple` a constructor for each class, which takes
longer than all the rest; a supervisor defines seventy of them before it can answer. Those with as many fields share the code of one
constructor here. To type checkers they are those of `typing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from collections import namedtuple
    from types import CodeType, FunctionType

    _new = tuple.__new__
    _Getter = type(namedtuple("_One", "x").x)
    _codes = {}

    class _Base(tuple):
        __slots__ = ()

        @classmethod
        def _make(cls, iterable):
            made = _new(cls, iterable)
            if len(made) != len(cls._fields):
                raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
            return made

        def _replace(self, /, **changed):
            made = self._make(map(changed.pop, self._fields, self))
            if changed:
                raise ValueError(f"Got unexpected field names: {list(changed)!r}")
            return made

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self):
            shown = ", ".join(f"{name}={value!r}" for name, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({shown})"

        def __getnewargs__(self):
            return tuple(self)

    def _code_of(count: int) -> CodeType:
        if count not in _codes:
            names = "".join(f"_{number}, " for number in range(count))
            _codes[count] = eval(f"lambda _cls, {names}: _new(_cls, ({names}))").__code__
        return _codes[count]

    class _Definition(type):
        """Makes a named tuple of a class statement: annotations are fields, what they are given is their defaults."""

        def __new__(cls, name, bases, namespace):
            fields = tuple(namespace.get("__annotations__", ()))
            defaults = {field: namespace.pop(field) for field in fields if field in namespace}
            code = _code_of(len(fields)).replace(co_varnames=("_cls", *fields), co_name="__new__")
            namespace |= {
                field: _Getter(number, f"Alias for field number {number}") for number, field in enumerate(fields)
            }
            namespace |= {
                "__slots__": (),
                "__new__": FunctionType(code, globals(), "__new__", tuple(defaults.values())),
                "__match_args__": fields,
                "_fields": fields,
                "_field_defaults": defaults,
            }
            return type(name, (_Base,), namespace)

    NamedTuple = type.__new__(_Definition, "NamedTuple", (), {})
