"""One YAML document into frozen Structs, with every mistake reported at once and each by its path.

msgspec says what is wrong with one value; this module walks the tree so that it says so for all of them, replaces
``${NAME}`` after the YAML is parsed (a key may hold any character, and a comment is never expanded), and refuses keys
that stand twice, which YAML itself would let pass. No message quotes a value, nor a name that may be a key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from aigw.config.quoting import quoted

MAX_NODES = 100_000


_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)  # what a message quotes from the file may be a key
_SYNTAX = re.compile(r"[^A-Za-z0-9]{1,3}|<[a-z ]+>")
_BARE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_]*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse(text: str) -> tuple[Any, list[str]]:
    """The tree that ``text`` holds, and its mistakes: syntax (by line; its text may hold a key) and double keys."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return yaml.safe_load(text), list(_doubled(node, "", set()))
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        return None, [f"{where}not YAML: {_in_yaml_words(error.problem or '')}"]
    except Exception as error:  # PyYAML's constructors raise whatever their conversions raise
        return None, [f"not YAML: a value is not what its form promises ({type(error).__name__})"]


def _in_yaml_words(problem: str) -> str:
    """PyYAML's words less what they quote from the file, which may be a key, and with what is most likely the mend."""
    if "\\t" in problem:
        return "a tab stands there; indent with spaces"
    said = _QUOTED.sub(lambda match: match[0] if _SYNTAX.fullmatch(match[0][1:-1]) else "...", problem)
    return f"{said}; look at the indentation, the space behind each colon, and the quotes, there and on the line before"


def _doubled(node: yaml.Node | None, path: str, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            here = _join(path, key.value)
            if key.value in names and key.value != "<<":
                yield f"{here}: stands twice (the second is on line {key.start_mark.line + 1}); keep one"
            names.add(key.value)
            yield from _doubled(value, here, seen)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _doubled(value, f"{path}[{index}]", seen)


def expand(tree: Any, environ: Mapping[str, str]) -> tuple[Any, list[str]]:
    """``tree`` with ``${NAME}`` in its strings replaced from ``environ``, and a mistake for each that cannot be.

    Aliases become copies; a tree that is too large by them, or that holds itself, is a mistake as well.
    """
    mistakes: list[str] = []
    count = 0

    def value_of(match: re.Match[str], path: str) -> str:
        name = match.group(1)
        if not _NAME.fullmatch(name):
            mistakes.append(f"{path}: what stands in ${{...}} is not a variable name; write ${{NAME}}")
        elif name not in environ:
            mistakes.append(f"{path}: the environment variable {quoted(name)} is not set")
        elif not environ[name]:
            mistakes.append(f"{path}: the environment variable {quoted(name)} is empty")
        else:
            return environ[name]
        return "unset"

    def walk(value: Any, path: str) -> Any:
        nonlocal count
        count += 1
        if count > MAX_NODES:
            raise RecursionError
        if isinstance(value, str):
            if path.endswith("api_key") and ("${" in _VARIABLE.sub("", value) or _BARE.fullmatch(value)):
                mistakes.append(f"{path}: looks like a variable, and is none; write ${{NAME}}")
            return _VARIABLE.sub(lambda match: value_of(match, path), value)
        if isinstance(value, dict):
            return {
                name: walk(member, _join(path, name))
                for name, member in value.items()
                if not huge(name, _join(path, "..."))
            }
        if isinstance(value, list):
            return [walk(member, f"{path}[{index}]") for index, member in enumerate(value)]
        return 0 if huge(value, path) else value

    def huge(value: Any, path: str) -> bool:
        """Whether it is a number that Python would refuse to print."""
        if isinstance(value, int) and value.bit_length() > 10_000:
            mistakes.append(f"{path}: a number is too large")
            return True
        return False

    try:
        return walk(tree, ""), mistakes
    except RecursionError:
        return None, ["the file: is nested too deeply, holds itself, or grows too large by its aliases"]


def _join(path: str, name: Any) -> str:
    shown = quoted(str(name))
    return f"{path}.{shown}" if path else shown
