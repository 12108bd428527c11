"""How a setting is defined: only by the annotation of one field of ``model``.

A field's name is the setting's name unless ``At`` gives another. Its default is the setting's default; a field without
one is required. ``Written`` is how the value is written. ``shape_of`` makes the table that ``reader`` uses.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import msgspec


class Written(NamedTuple):
    """How one value is written.

    ``decode`` makes the value from what YAML holds, or raises ValueError with a text that follows the value: "is not a
    port; write ...". ``advice`` gives a warning about a good value, in the same form. ``secret``: the value may be a
    key, so no message shows it. ``is_file``: a relative path begins at the folder of the file.
    """

    decode: Callable[[object], Any]
    advice: Callable[[object], str | None] | None = None
    secret: bool = False
    is_file: bool = False


class At(NamedTuple):
    """The setting's name in the file, where the field has another; ``limits.body`` is ``body`` in ``limits``."""

    name: str


class Inherited(NamedTuple):
    """The setting may also be in each mapping around this one; the innermost value is used.

    ``default`` is used if no mapping has it; ``top`` is its name at the top of the file, if that differs.
    """

    default: object
    top: str = ""


class Otherwise(NamedTuple):
    """The default depends on the other values of the same mapping, which are given by their fields' names."""

    value: Callable[[Mapping[str, Any]], object]


class Unless(NamedTuple):
    """The setting is required, unless the mapping has the list ``entries``. Its value is then the first entry's."""

    entries: str


class OneOf(NamedTuple):
    """One of a few words, each with the value that it stands for. A ``Literal`` is one whose words are the values."""

    words: tuple[tuple[str, object], ...]


class Named(NamedTuple):
    """The name of an entry of the list ``setting`` at the top of the file, which must be read before."""

    setting: str
    written: Written


class _NotWritten:
    """The field is not a setting: the program computes it."""


NOT_WRITTEN = _NotWritten()
POSITION = _NotWritten()  # the position of the mapping in its list, from 1


class Each(NamedTuple):
    """A list of values; ``make`` makes the result from it."""

    form: Written
    make: Callable[[list[object]], object]


class Pairs(NamedTuple):
    """A mapping of any names to values."""

    name: Written
    value: Written


class Entries(NamedTuple):
    """A list of mappings; ``by_name`` makes it a dict by their unique names."""

    shape: Shape
    by_name: bool


class Entry(NamedTuple):
    """One mapping."""

    shape: Shape


Form = Written | OneOf | Named | Each | Pairs | Entries | Entry
NO_DEFAULT = msgspec.NODEFAULT


class Setting(NamedTuple):
    """One setting in one mapping. ``nullable``: a setting without a value counts as missing."""

    attribute: str
    form: Form
    default: object = NO_DEFAULT
    otherwise: Otherwise | None = None
    inherited: Inherited | None = None
    nullable: bool = False
    unless: str = ""

    @property
    def required(self) -> bool:
        """Whether the file must have it."""
        return self.default is NO_DEFAULT and not self.otherwise and not self.inherited


class Shape:
    """What may be in a mapping: ``own`` settings by name, mappings that only group some of them, and ``passed`` ones,
    which the mappings inside it inherit. ``make`` makes the value; None if the mapping only groups."""

    def __init__(self, make: type | None) -> None:
        self.make = make
        self.position: str | None = None  # the field that has it
        self.own: dict[str, Setting | Shape] = {}
        self.passed: dict[str, Setting] = {}

    @property
    def names(self) -> list[str]:
        """All names that are known in it."""
        return [*self.own, *(name for name in self.passed if name not in self.own)]


def shape_of(made: type, top: bool = True) -> Shape:
    """The shape of the mapping that becomes a ``made``, a Struct; ``top`` is that of the whole file."""
    shape = Shape(made)
    hints = typing.get_type_hints(made, include_extras=True)
    for field in msgspec.structs.fields(made):
        hint, optional, marks = _unwrapped(hints[field.name])
        if POSITION in marks:
            shape.position = field.name
        if _mark(marks, _NotWritten):
            continue
        default = field.default if field.default_factory is NO_DEFAULT else field.default_factory()
        otherwise, inherited = _mark(marks, Otherwise), _mark(marks, Inherited)
        unless = _mark(marks, Unless)
        nullable = bool(optional or otherwise or default in ((), frozenset()))
        form = _form(hint, marks)
        *groups, name = (_mark(marks, At) or At(field.name)).name.split(".")
        place = shape
        for each in groups:
            group = place.own.setdefault(each, Shape(None))
            assert isinstance(group, Shape)
            place = group
        if inherited:
            optional = nullable = True
        place.own[name] = Setting(
            field.name, form, default, otherwise, inherited, nullable, unless.entries if unless else ""
        )
        if isinstance(form, Entries | Entry):
            below = form.shape
            from_below = {each.attribute: each for each in below.own.values() if isinstance(each, Setting)}
            for each in [*below.passed.values(), *(each for each in from_below.values() if each.inherited)]:
                assert each.inherited
                name = each.inherited.top or each.attribute if top else each.attribute
                shape.passed[name] = Setting(each.attribute, each.form, NO_DEFAULT, None, each.inherited, not top)
    return shape


def settings(shape: Shape, path: str = "") -> Iterator[tuple[str, Setting | Shape]]:
    """Every setting by its path, as ``routes[].steps[].model``; a mapping that only groups has a path as well."""
    for name, each in [*shape.own.items(), *((name, shape.passed[name]) for name in shape.passed)]:
        here = f"{path}.{name}".lstrip(".")
        yield here, each
        if isinstance(each, Shape):
            yield from settings(each, here)
        elif isinstance(each.form, Entries):
            yield from settings(each.form.shape, f"{here}[]")
        elif isinstance(each.form, Entry):
            yield from settings(each.form.shape, here)


def _unwrapped(hint: Any) -> tuple[Any, bool, tuple[Any, ...]]:
    """A hint without ``Annotated`` and ``| None``, whether it had the latter, and the annotations."""
    optional, marks = False, ()
    while True:
        if typing.get_origin(hint) is Annotated:
            marks = (*marks, *hint.__metadata__)
            hint = typing.get_args(hint)[0]
        elif typing.get_origin(hint) in (typing.Union, types.UnionType) and not _mark(marks, Written):
            (hint,) = [each for each in typing.get_args(hint) if each is not type(None)]
            optional = True
        else:
            return hint, optional, marks


def _mark(marks: tuple[Any, ...], kind: type) -> Any:
    return next((each for each in marks if isinstance(each, kind)), None)


def _form(hint: Any, marks: tuple[Any, ...]) -> Form:
    for kind in (Named, OneOf, Written):
        if found := _mark(marks, kind):
            return typing.cast(Form, found)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return OneOf(tuple((word, word) for word in inner))
    if origin is dict and _is_struct(inner[1]):
        return Entries(shape_of(inner[1], top=False), by_name=True)
    if origin is tuple and _is_struct(inner[0]):
        return Entries(shape_of(inner[0], top=False), by_name=False)
    if origin is dict:
        return Pairs(*(_mark(_unwrapped(each)[2], Written) for each in inner))
    if origin in (tuple, frozenset):
        return Each(_mark(_unwrapped(inner[0])[2], Written), origin)
    if _is_struct(hint):
        return Entry(shape_of(hint, top=False))
    raise TypeError(f"there is no form for the type {hint}; annotate it with Written")


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)
