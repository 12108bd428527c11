"""From a parsed tree to the structs of ``model``: all mistakes at once, each with its path and the right form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path as Folder
from typing import Any

from aigw.config.known_entries import KnownEntries
from aigw.settings.mistakes import Mistake, Path, name_of, shown
from aigw.settings.quoting import did_you_mean, listed, quoted, similar, subject
from aigw.settings.schema import (
    NO_DEFAULT,
    Each,
    Entries,
    Entry,
    Form,
    Named,
    OneOf,
    Pairs,
    Setting,
    Shape,
    Written,
    settings,
)


class Reader:
    """Reads one tree by the shape of the whole file, and collects ``mistakes`` and ``warnings``."""

    def __init__(
        self,
        shape: Shape,
        folder: Folder,
        names: Mapping[str, dict[str, Any]] | None = None,
        known: KnownEntries | None = None,
    ) -> None:
        """``names`` has entries of lists in another file, by the setting, for settings that name one of them. ``known``
        are the entries of the one list at the top whose entries need no unique names.
        """
        self._known = known
        self.mistakes: list[Mistake] = []
        self.warnings: list[Mistake] = []
        self._shape = shape
        self._folder = folder
        self._names: dict[str, dict[str, Any]] = dict(names or {})

    def read(self, tree: Any) -> Any:
        """The struct that the tree describes; None if there are mistakes."""
        return self._struct(tree, self._shape, (), {}, None)

    def _note(self, path: Path, text: str) -> None:
        self.mistakes.append(Mistake(text, path))

    def _struct(self, value: Any, shape: Shape, path: Path, scope: Mapping[str, Any], position: int | None) -> Any:
        made = self._members(value, shape, path, scope)
        if self.mistakes or shape.make is None:
            return None
        if shape.position is not None:
            made[shape.position] = position
        return shape.make(**made)

    def _members(self, value: Any, shape: Shape, path: Path, scope: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a mapping by the names of the fields; ``scope`` has those that it may inherit."""
        if not isinstance(value, dict):
            self._note(path, f"expected a mapping with {', '.join(shape.names)}, not {_kind(value)}")
            return {}
        for name in value:
            if name not in shape.own and name not in shape.passed:
                self._note((*path, name_of(name)), f"unknown setting{self._meant(name, shape)}")
        if shape.passed:
            scope = {**scope, **self._passed(value, shape, path)}
        made: dict[str, Any] = {}
        later: list[Setting] = []
        for name, setting in shape.own.items():
            if isinstance(setting, Shape):
                made |= self._members(value.get(name, {}), setting, (*path, name), scope)
                continue
            given = value.get(name, NO_DEFAULT)
            if given is NO_DEFAULT or (given is None and setting.nullable):
                if setting.inherited:
                    made[setting.attribute] = scope[setting.attribute]
                elif setting.otherwise or (setting.unless and value.get(setting.unless) is not None):
                    later.append(setting)
                elif setting.required:
                    self._note((*path, name), "is required and missing")
                else:
                    made[setting.attribute] = setting.default
            else:
                made[setting.attribute] = self._value(given, setting.form, (*path, name), scope)
        for setting in later:
            if self.mistakes:
                break
            if setting.otherwise:
                made[setting.attribute] = setting.otherwise.value(made)
            else:
                made[setting.attribute] = getattr(made[setting.unless][0], setting.attribute)
        return made

    def _passed(self, value: dict[Any, Any], shape: Shape, path: Path) -> dict[str, Any]:
        """The settings of this mapping that the mappings inside it inherit; at the top with the defaults."""
        found: dict[str, Any] = {}
        for name, setting in shape.passed.items():
            given = value.get(name, NO_DEFAULT)
            if given is not NO_DEFAULT and not (given is None and setting.nullable):
                found[setting.attribute] = self._value(given, setting.form, (*path, name), {})
            elif shape is self._shape and setting.inherited:
                found[setting.attribute] = setting.inherited.default
        return found

    def _value(self, value: Any, form: Form, path: Path, scope: Mapping[str, Any]) -> Any:
        if isinstance(form, Written):
            return self._written(value, form, path)
        if isinstance(form, Named):
            return self._named(value, form, path)
        if isinstance(form, OneOf):
            return self._one_of(value, form, path)
        if isinstance(form, Entries):
            return self._entries(value, form, path, scope)
        if isinstance(form, Entry):
            return self._struct(value, form.shape, path, scope, None)
        if isinstance(form, Each):
            return form.make([self._written(*each) for each in self._listed(value, form.form, path)])
        return self._pairs(value, form, path)

    def _written(self, value: Any, form: Written, path: Path) -> Any:
        try:
            made = form.decode(value)
        except ValueError as error:
            self._note(path, f"{'the value' if form.secret else subject(value)} {error}")
            return None
        if form.advice and (advice := form.advice(value)):
            self.warnings.append(Mistake(f"{'the value' if form.secret else subject(value)} {advice}", path))
        return self._placed(made) if form.is_file else made

    def _placed(self, made: Any) -> Any:
        """A path, or a command whose program is one; a program without a slash is looked for in PATH."""
        if isinstance(made, str):
            return str(self._folder / made)
        program, *arguments = made
        return (str(self._folder / program) if "/" in program else program, *arguments)

    def _listed(self, value: Any, form: Any, path: Path) -> list[tuple[Any, Any, Path]]:
        if not isinstance(value, list) or not value:
            self._note(path, f"expected a list with at least one entry, not {_kind(value)}")
            return []
        return [(each, form, (*path, index)) for index, each in enumerate(value)]

    def _entries(self, value: Any, form: Entries, path: Path, scope: Mapping[str, Any]) -> Any:
        entries = self._listed(value, form.shape, path)
        if not form.by_name:
            if self._known is not None and len(path) == 1:
                return self._made_or_known(self._known, entries, form.shape)
            made = [self._struct(*each, scope, number) for number, each in enumerate(entries, 1)]
            return tuple(made)
        first: dict[str, Path] = {}
        for each, _, at in entries:
            if not isinstance(each, dict) or "name" not in each:
                continue
            earlier = first.setdefault(str(each["name"]), at)
            if earlier is not at:
                self._note((*at, "name"), f"is the same as the name of {shown(earlier)}; write a unique name")
        names = self._names[str(path[-1])] = dict.fromkeys(first)
        for number, each in enumerate(entries, 1):
            found = self._struct(*each, scope, number)
            if found is not None:
                names[found.name] = found
        return names

    def _made_or_known(
        self, known: KnownEntries, entries: list[tuple[Any, Any, Path]], shape: Shape
    ) -> tuple[Any, ...]:
        """The same, where an entry that has not changed is not read again; nor has the one that it names."""
        settings_ = [(name, each.form) for name, each in shape.own.items() if isinstance(each, Setting)]
        named = [(name, form.setting) for name, form in settings_ if isinstance(form, Named)]

        def read(value: Any, path: Path) -> tuple[Any, bool]:
            before = len(self.warnings)
            made = self._struct(value, shape, path, {}, None)
            return made, made is not None and len(self.warnings) == before

        known.begin()
        made = []
        for value, _, path in entries:
            others = [
                self._names.get(at, {}).get(str(value[name]))
                for name, at in named
                if isinstance(value, dict) and name in value
            ]
            made.append(known.made([value, *others], partial(read, value, path)))
        return tuple(made)

    def _named(self, value: Any, form: Named, path: Path) -> Any:
        known = self._names.get(form.setting, {})
        if str(value) in known:
            return known[str(value)]
        if self._written(value, form.written, path) is not None:
            kind = form.setting.removesuffix("s")
            there = f"; there are: {listed(known)}" if known else ""
            self._note(path, f"no {kind} is named {quoted(str(value))!r}{there}{did_you_mean(value, known)}")

    def _one_of(self, value: Any, form: OneOf, path: Path) -> Any:
        for word, meaning in form.words:
            if isinstance(value, str) and value == word:
                return meaning
        words = [word for word, _ in form.words]
        self._note(path, f"{subject(value)} is unknown; write {' or '.join(words)}{did_you_mean(value, words)}")

    def _pairs(self, value: Any, form: Pairs, path: Path) -> dict[str, Any]:
        if not isinstance(value, dict):
            self._note(path, f"expected a mapping of names to values, not {_kind(value)}")
            return {}
        made: dict[str, Any] = {}
        seen = Counter(str(name).lower() for name in value)
        for name, member in value.items():
            here = (*path, name_of(name))
            try:
                decoded = form.name.decode(name)
            except ValueError as error:
                self._note(here, str(error))
                continue
            if seen[decoded.lower()] > 1:
                seen[decoded.lower()] = -1
                self._note((*path, decoded.lower()), "is written twice, in upper and lower case; keep one of the two")
            made[decoded] = self._written(member, form.value, here)
        return made

    def _meant(self, name: Any, shape: Shape) -> str:
        """The name that is probably meant by an unknown one, or all names that are known in this mapping."""
        renamed = {known: each.attribute for known, each in self._shape.passed.items() if known != each.attribute}
        for at_top, below in renamed.items():
            if shape is self._shape and name == below:
                return f"; at the top of the file its name is {at_top}"
            if below in shape.names and name == at_top:
                return f"; its name is {below} except at the top of the file"
        places = [path.rpartition(".")[0] for path, _ in settings(self._shape) if path.rpartition(".")[2] == name]
        if places:
            return f" here; {name} belongs in {' or '.join(place or 'the top of the file' for place in places)}"
        found = similar(str(name), shape.names)
        known = f"nown here: {', '.join(shape.names)}"
        return f"; did you mean {found}? K{known}" if found else f"; k{known}"


def _kind(value: Any) -> str:
    for kind, word in ((type(None), "an empty value"), (bool, "true or false"), (dict, "a mapping"), (list, "a list")):
        if isinstance(value, kind):
            return word if value or kind in (type(None), bool) else f"an empty {word.removeprefix('a ')}"
    return "a string" if isinstance(value, str) else "a number" if isinstance(value, int | float) else "such a value"
