"""Facts as plain data, and back: a dataclass is a dict by its fields' names, a tuple a list, the rest stays as it is.

What to expect stands in the dataclasses' own type hints. Data of an older or newer version still loads: fields that are
not known here are ignored, those that are missing take their default. Everything else that does not fit is a
`DecodeError` which names the place, for a journal may come from anywhere.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_MISSING = dataclasses.MISSING
_SCALARS = frozenset({bool, int, float, str, bytes})
_PLAIN = _SCALARS | {type(None)}


class DecodeError(ValueError):
    """The data is not what it should be; `str()` says where."""


def encode(fact: Any) -> Any:
    """A fact, or a tuple or mapping of facts, as plain data."""
    if type(fact) in _PLAIN:
        return fact
    if isinstance(fact, tuple | list):
        return [encode(item) for item in fact]
    if isinstance(fact, Mapping):
        return {key: encode(value) for key, value in fact.items()}
    if isinstance(fact, frozenset):
        return sorted(fact)
    return {name: encode(getattr(fact, name)) for name in _names(type(fact))}  # type: ignore[arg-type]


def encode_as(kinds: Any, fact: Any) -> dict[str, Any]:
    """A fact of one of several dataclasses (`kinds` is their union), under the name of its own."""
    assert type(fact) in _classes(kinds)
    return {type(fact).__name__: encode(fact)}


def decode(cls: type[T], data: Any) -> T:
    """The fact that `encode` made `data` of. DecodeError when it cannot be one."""
    hint: Any = cls
    return _decoder(hint)(data, cls.__name__)  # type: ignore[no-any-return]


def decode_as(kinds: Any, data: Any) -> Any:
    """The fact that `encode_as` made `data` of."""
    for cls in _classes(kinds):
        if isinstance(data, dict) and cls.__name__ in data:
            return decode(cls, data[cls.__name__])
    raise DecodeError(f"none of {', '.join(cls.__name__ for cls in _classes(kinds))}")


@cache
def _names(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


def _classes(kinds: Any) -> tuple[type, ...]:
    return tuple(get_args(kinds)) or (kinds,)


_Decoder = Callable[[Any, str], Any]
"""(data, the name of its place) -> value."""


@cache
def _decoder(hint: Any) -> _Decoder:
    if hint is Any:
        return lambda data, _: data
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is tuple:
        return _tuple(arguments)
    if origin is frozenset:
        every = _list(arguments[0])
        return lambda data, where: frozenset(every(data, where))
    if origin in (dict, Mapping):
        return _mapping(*arguments)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint)
    if hint in _PLAIN:
        return _scalar(hint)
    raise TypeError(f"a fact has a field of the type {hint}, which cannot be read back")


def _scalar(cls: type) -> _Decoder:
    def read(data: Any, where: str) -> Any:
        if type(data) is cls:
            return data
        if cls is float and type(data) is int:
            return float(data)
        raise DecodeError(f"{where} is not {'empty' if cls is type(None) else f'of the type {cls.__name__}'}")

    return read


def _union(arguments: tuple[Any, ...]) -> _Decoder:
    """Of scalars, None and at most one kind of the others: then the data itself tells which it is."""
    scalars = _PLAIN.intersection(arguments)
    others = [argument for argument in arguments if argument not in scalars]
    if len(others) > 1:
        raise TypeError(f"a fact has a field that may be any of {others}, which cannot be told apart")
    numbers = float in scalars

    def read(data: Any, where: str) -> Any:
        if type(data) in scalars:
            return data
        if numbers and type(data) is int:
            return float(data)
        if others and data is not None:
            return _decoder(others[0])(data, where)
        raise DecodeError(f"{where} has an unexpected type")

    return read


def _list(item: Any) -> _Decoder:
    one = _decoder(item)

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, list):
            raise DecodeError(f"{where} is not a list")
        return [one(entry, f"{where}[{index}]") for index, entry in enumerate(data)]

    return read


def _tuple(arguments: tuple[Any, ...]) -> _Decoder:
    if len(arguments) == 2 and arguments[1] is ...:
        every = _list(arguments[0])
        return lambda data, where: tuple(every(data, where))
    each = [_decoder(argument) for argument in arguments]

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, list) or len(data) != len(each):
            raise DecodeError(f"{where} is not a list of {len(each)}")
        return tuple(one(entry, where) for one, entry in zip(each, data, strict=True))

    return read


def _mapping(key: Any, value: Any) -> _Decoder:
    keys, values = _decoder(key), _decoder(value)

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise DecodeError(f"{where} is not a mapping")
        return {keys(name, where): values(entry, where) for name, entry in data.items()}

    return read


def _dataclass(cls: type) -> _Decoder:
    fields = dataclasses.fields(cls)
    hints = get_type_hints(cls)
    needed = {field.name for field in fields if field.default is _MISSING and field.default_factory is _MISSING}

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise DecodeError(f"{where} is not a {cls.__name__}")
        missing = needed - data.keys()
        if missing:
            raise DecodeError(f"{where} has no {min(missing)}")
        return cls(
            **{
                field.name: _decoder(hints[field.name])(data[field.name], f"{where}.{field.name}")
                for field in fields
                if field.name in data
            }
        )

    return read
