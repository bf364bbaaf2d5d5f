"""Frozen values with named fields, declared as dataclasses are.

A clone declares ten of them before it can begin. Dataclasses load `inspect` and compile methods for
each, named tuples compile each annotation: 10 ms and 3 ms, of the 80 that a clone takes. Here
nothing is made but the class; what type checkers are told is the same.
"""

from __future__ import annotations

from typing import Any, dataclass_transform

_ABSENT: Any = object()


@dataclass_transform(frozen_default=True)
class Value:
    """Takes its fields by name, or in their order; a class attribute is a field's default."""

    def __init__(self, *values: Any, **fields: Any) -> None:
        kind = type(self)
        names = kind.__annotations__
        told = dict(zip(names, values, strict=False)) | fields
        held = {name: told.pop(name, getattr(kind, name, _ABSENT)) for name in names}
        if told or len(values) > len(names) or _ABSENT in held.values():
            raise TypeError(f"{kind.__name__} takes {', '.join(names)}")
        self.__dict__.update(held)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen", name=name, obj=self)

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.__dict__.items())
        return f"{type(self).__name__}({told})"
