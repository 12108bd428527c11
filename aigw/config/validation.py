"""What keeps a parsed tree from being what the schema says: every mistake at once, each with its path."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from aigw.config.yaml_tree import _join

Decode = Callable[[type, Any], Any]


def mistakes_in(value: Any, expected: Any, decode: Decode, path: str = "") -> Iterator[str]:
    """What keeps ``value`` from being an ``expected``.

    That is a Struct, a ``tuple[X, ...]``, a ``dict[K, X]``, an ``X | None`` or a leaf type. ``decode(type, value)``
    makes the leaf types that msgspec does not know, and raises ``ValueError`` with what would be right.
    """
    if typing.get_origin(expected) in (typing.Union, types.UnionType) and type(None) in typing.get_args(expected):
        if value is None:
            return
        (expected,) = [arg for arg in typing.get_args(expected) if arg is not type(None)]
    if typing.get_origin(expected) is tuple:
        if not isinstance(value, list) or not value:
            yield f"{path}: expected a list with at least one entry"
            return
        for index, member in enumerate(value):
            yield from mistakes_in(member, typing.get_args(expected)[0], decode, f"{path}[{index}]")
    elif typing.get_origin(expected) is dict:
        if not isinstance(value, dict):
            yield f"{path}: expected a mapping"
            return
        for key, member in value.items():
            for part, kind in zip((key, member), typing.get_args(expected), strict=True):
                yield from mistakes_in(part, kind, decode, _join(path, key))
    elif isinstance(expected, type) and issubclass(expected, msgspec.Struct):
        yield from _mistakes_in_mapping(value, expected, decode, path)
    elif typing.get_origin(expected) is typing.Literal:
        allowed = typing.get_args(expected)
        if not any(type(value) is type(each) and value == each for each in allowed):
            yield f"{path}: is unknown; write {' or '.join(map(str, allowed))}"
    else:
        try:
            msgspec.convert(value, expected, strict=False, dec_hook=decode)
        except msgspec.ValidationError as error:
            yield f"{path}: {_in_words(str(error))}"
        except UnicodeEncodeError:
            yield f"{path}: holds half a surrogate pair; write the character itself"


def _mistakes_in_mapping(value: Any, expected: type[msgspec.Struct], decode: Decode, path: str) -> Iterator[str]:
    fields = {field.name: field for field in msgspec.structs.fields(expected)}
    if not isinstance(value, dict):
        yield f"{path or 'the file'}: expected a mapping with {', '.join(fields)}"
        return
    for key in value:
        if key not in fields:
            yield f"{_join(path, key)}: unknown setting; known here: {', '.join(fields)}"
    for name, field in fields.items():
        if name in value:
            yield from mistakes_in(value[name], field.type, decode, _join(path, name))
        elif field.required:
            yield f"{_join(path, name)}: missing, and required"


def _in_words(error: str) -> str:
    error = error.split(" - at `$")[0]
    if error.startswith("Expected `str`, got"):
        return f"{error}; put the value in quotes"
    return error
