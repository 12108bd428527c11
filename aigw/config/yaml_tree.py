"""The YAML of a file: its text, its tree, the lines of its values, and names that are written twice, which YAML allows.

``${NAME}`` is replaced after the YAML is parsed, so a key may hold any character, and comments are left unchanged.
libyaml parses, where PyYAML has it: 2,000 routes take 0.4 s instead of 7. No message quotes what may be a key.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import yaml

from aigw.config.yaml_errors import in_words
from aigw.errors import ConfigError
from aigw.settings.mistakes import Mistake, Path, name_of
from aigw.settings.quoting import MOST_BITS, Expanded, did_you_mean, quoted

MAX_NODES = 100_000
NAMED = "with -c FILE"  # where a user names the configuration file

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_BARE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYS = (("api_key",), ("admin_key",), ("key",))
_TEXT, _MAPPING, _LIST = "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Finds out once what kind of value a text is. A file of many keys repeats its names."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._tags: dict[str, str] = {}

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        """See Resolver of PyYAML. ``implicit`` is whether a plain scalar, and whether a quoted one, has no tag."""
        if kind is not yaml.ScalarNode or not implicit[0]:
            return str(super().resolve(kind, value, implicit))
        tag = self._tags.get(value)
        if tag is None:
            tag = self._tags[value] = super().resolve(kind, value, implicit)
        return tag


class Document(NamedTuple):
    """A parsed text: its tree, its nodes with their lines, and its mistakes."""

    tree: object
    root: yaml.Node | None
    mistakes: list[Mistake]


def read(
    path: FilePath,
    shown: str,
    most: int,
    named: str = NAMED,
    smaller: str = f"name a configuration file {NAMED}",
) -> tuple[str, int]:
    """The text of a file of at most so many bytes, which messages call ``shown``, and its mode. Raises ConfigError.

    ``named`` is where a user names it; ``smaller`` is what to do about a larger one. A pipe would be waited for.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigError([no_file(shown, mode, named)])
            data = file.read(most + 1)
        text = data.decode()
    except IsADirectoryError:
        raise ConfigError([no_file(shown, stat.S_IFDIR, named)]) from None
    except OSError as error:
        raise ConfigError([f"{shown}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{shown}, line {line}: the file is not UTF-8; save it in that encoding"]) from None
    if len(data) > most:
        raise ConfigError([f"{shown}: the file is larger than {most} bytes; {smaller}"])
    return text, mode


def no_file(place: str, mode: int, named: str = NAMED) -> str:
    """What is there in place of a file; ``named`` is where a user names it."""
    if stat.S_ISDIR(mode):
        example = f", for example {os.path.join(place, 'config.yaml')}" if named == NAMED else ""
        return f"{place}: this is a folder; name a file {named}{example}"
    return f"{place}: this is not a regular file; name one {named}"


def parse(text: str) -> Document:
    """The tree of ``text``; None if its syntax is wrong."""
    try:
        return _parsed(text, _Loader)
    except Exception:  # libyaml's messages depend on its version, so PyYAML's own parser finds the mistake
        pass
    try:
        return _parsed(text, yaml.SafeLoader)
    except Exception as error:  # PyYAML's constructors raise whatever their conversions raise
        return Document(None, None, [in_words(error, text)])


def _parsed(text: str, loader_class: Any) -> Document:
    loader = loader_class(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Document(None, None, [])
        with suppress(_Unusual):
            return Document(_made(root, loader.construct_object, {}), root, [])
        doubled = list(_doubled(root, (), set()))  # before the tree is made, which changes the nodes of merges
        return Document(loader.construct_document(root), root, doubled)
    finally:
        loader.dispose()


class _Unusual(Exception):
    """The tree has what PyYAML makes, which takes longer, or a name that is written twice."""


def _made(node: yaml.Node, construct: Callable[[yaml.Node], object], known: dict[int, Any]) -> Any:
    """The value of a node; ``known`` are those of mappings and lists, so that an alias is the same object."""
    tag = node.tag
    if tag == _TEXT and isinstance(node, yaml.ScalarNode):
        return node.value
    made = known.get(id(node))
    if made is not None:
        return made
    if tag == _MAPPING and isinstance(node, yaml.MappingNode):
        made = known[id(node)] = {}
        for name, value in node.value:
            if name.tag != _TEXT:
                raise _Unusual
            is_text = value.tag == _TEXT and type(value) is yaml.ScalarNode
            made[name.value] = value.value if is_text else _made(value, construct, known)
        if len(made) != len(node.value):
            raise _Unusual
        return made
    if tag == _LIST and isinstance(node, yaml.SequenceNode):
        made = known[id(node)] = []
        made += [_made(value, construct, known) for value in node.value]
        return made
    if not isinstance(node, yaml.ScalarNode):
        raise _Unusual
    return construct(node)


def _doubled(node: yaml.Node, path: Path, seen: set[int]) -> Iterator[Mistake]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            here, line = (*path, key.value), key.start_mark.line + 1
            if key.value in lines and key.value != "<<":
                first = lines[key.value]
                where = f"on line {first} and on line {line}" if first != line else f"on line {line}"
                yield Mistake(f"is written twice, {where}; keep one of the two", here, line)
            lines.setdefault(key.value, line)
            if not isinstance(value, yaml.ScalarNode):
                yield from _doubled(value, here, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _doubled(value, (*path, index), seen)


def expand(tree: object, environ: Mapping[str, str], most: int = MAX_NODES) -> tuple[object, list[Mistake]]:
    """``tree`` with ``${NAME}`` in its strings replaced from ``environ``, and a mistake for each unknown variable.

    Aliases become copies; a tree that contains itself, or is too large with the copies, is a mistake too.
    """
    mistakes: list[Mistake] = []
    count = 0

    def value_of(match: re.Match[str], path: Path) -> str:
        name = match.group(1)
        if not _NAME.fullmatch(name):
            mistakes.append(Mistake("the text in ${...} is not the name of a variable; write ${NAME}", path))
        elif name not in environ:
            meant = did_you_mean(name, environ) if len(name) > 3 else ""
            mistakes.append(Mistake(f"the environment variable {quoted(name)} is not set{meant}", path))
        elif not environ[name]:
            mistakes.append(Mistake(f"the environment variable {quoted(name)} is empty", path))
        else:
            return environ[name]
        return "unset"

    def walk(value: object, path: Path) -> object:
        nonlocal count
        count += 1
        if count > most:
            raise RecursionError
        if isinstance(value, str):
            if "$" not in value:
                return value
            if path[-1:] in _KEYS and ("${" in _VARIABLE.sub("", value) or _BARE.fullmatch(value)):
                mistakes.append(Mistake("seems to be a variable in another syntax; write ${NAME}", path))
            replaced = _VARIABLE.sub(lambda match: value_of(match, path), value)
            return Expanded.of(replaced, value) if _VARIABLE.search(value) else value
        if isinstance(value, dict):
            made: dict[object, object] = {}
            for name, member in value.items():
                if type(member) is str and type(name) is str and "$" not in member:  # nearly all of many keys
                    count += 1
                    made[name] = member
                elif not huge(name, (*path, "...")):
                    made[name] = walk(member, (*path, name_of(name)))
            return made
        if isinstance(value, list):
            return [walk(member, (*path, index)) for index, member in enumerate(value)]
        return 0 if huge(value, path) else value

    def huge(value: object, path: Path) -> bool:
        """Whether it is a number that Python refuses to print."""
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            mistakes.append(Mistake("the number is too large; write a smaller one", path))
            return True
        return False

    try:
        return walk(tree, ()), mistakes
    except RecursionError:
        return None, [
            Mistake(
                "is nested too deeply, contains itself, or is too large with its aliases; make it smaller",
                (),
            )
        ]
