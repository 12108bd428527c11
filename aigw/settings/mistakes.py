"""The mistakes in a file: file, line, path of the setting, and the text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import yaml

from aigw.settings.quoting import MOST_BITS, quoted


class Name(NamedTuple):
    """A name in a path that is written as a number."""

    text: str


Path = tuple[str | int | Name, ...]


class Mistake(NamedTuple):
    """A mistake at ``path``, which has names and numbers from the top of the file. Without a path it is at ``line`` of
    the file, or outside the file."""

    text: str
    path: Path | None = None
    line: int | None = None


def shown(path: Path) -> str:
    """A path as ``routes[0].steps``; a name that looks like a key is hidden."""
    text = ""
    for part in path:
        if type(part) is int:
            text += f"[{part}]"
        elif isinstance(part, Name):
            text += f".{quoted(part.text)}"
        else:
            text += f".{quoted(str(part))}"
    return text.removeprefix(".") or "the file"


def name_of(key: object) -> str | Name:
    """The part of a path for ``key`` of a mapping."""
    if isinstance(key, int) and key.bit_length() > MOST_BITS:
        return Name("(a number)")
    return key if isinstance(key, str) else Name(str(key))


def worded(mistakes: Iterable[Mistake], file: str = "", root: yaml.Node | None = None) -> list[str]:
    """The mistakes as lines, each once: ``FILE, line N: PATH: TEXT``, as far as these are known."""
    return list(dict.fromkeys(_worded(each, file, root) for each in mistakes))


def _worded(mistake: Mistake, file: str, root: yaml.Node | None) -> str:
    if mistake.path is None and mistake.line is None:
        return mistake.text
    line = mistake.line
    if line is None and root is not None and mistake.path is not None:
        line = line_of(root, mistake.path)
    where = f"{file}, line {line}: " if file and line else f"line {line}: " if line else f"{file}: " if file else ""
    return f"{where}{mistake.text}" if mistake.path is None else f"{where}{shown(mistake.path)}: {mistake.text}"


def line_of(root: yaml.Node, path: Path) -> int:
    """The line of the setting at ``path`` or, if it is missing, of the mapping around it."""
    line, node = root.start_mark.line, root
    for part in path:
        found = next(_below(node, part), None)
        if found is None:
            break
        line, node = found
    return int(line) + 1


def _below(node: yaml.Node, part: str | int | Name) -> Iterator[tuple[int, yaml.Node]]:
    """A member of a mapping, where its name is, or an entry of a list."""
    if isinstance(node, yaml.SequenceNode) and type(part) is int:
        entries: Sequence[yaml.Node] = node.value
        if part < len(entries):
            yield entries[part].start_mark.line, entries[part]
    elif isinstance(node, yaml.MappingNode):
        name = part.text if isinstance(part, Name) else part
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == name:
                yield key.start_mark.line, value


def not_following(unset: Sequence[Mistake], found: Iterable[Mistake]) -> list[Mistake]:
    """``found`` without the mistakes that an ``unset`` variable causes: the variable is reported once."""
    paths = {each.path for each in unset if each.path}
    around = {path[:length] for path in paths for length in range(1, len(path))}

    def follows(path: Path) -> bool:
        return path in around or any(path[:length] in paths for length in range(1, len(path) + 1))

    return [each for each in found if not follows(each.path or ())]
