"""Mistakes of YAML syntax in plain words: where each begins, and how to correct it. No message quotes the text."""

from __future__ import annotations

import re

import yaml

from aigw.settings.mistakes import Mistake

_QUOTED = re.compile(r"(['\"]).*\1", re.DOTALL)  # what PyYAML quotes from the file may be a key
_SYNTAX = re.compile(r"[^A-Za-z0-9]{1,3}|<[a-z ]+>")
_CHECK = "check the indentation, the space after each colon, and the quotes, on this line and on the line before"
_OPENED = {"sequence": ("[", "]"), "mapping": ("{", "}")}


def in_words(error: Exception, text: str) -> Mistake:
    """The mistake that PyYAML found in ``text``."""
    if not isinstance(error, yaml.MarkedYAMLError):
        words = f"not YAML: a value does not have the type that it declares ({type(error).__name__})"
        if isinstance(error, yaml.reader.ReaderError):
            words = "not YAML: the file has a control character, or another one that YAML does not allow; remove it"
        return Mistake(words, (), _line_of_character(error, text))
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else None
    opened = error.context_mark.line + 1 if error.context_mark else line
    if "quoted scalar" in context and "end of stream" in problem:
        return _mistake("a quote opens on this line and is not closed; close it where the value ends", opened)
    if mark and "expected ',' or" in problem and _is_variable(text, mark.index):
        right = 'in [...] and {...} use quotes: write "${NAME}"'
        return _mistake(f"a variable has no quotes; {right}", line)
    if mark and (quote := _long_quote(text, mark.index)):
        first, last = quote
        return _mistake(
            f"a quote that opens on this line ends only on line {last}; close it where the value ends", first
        )
    flow = re.fullmatch(r"while parsing a flow (sequence|mapping)", context)
    if flow and error.context_mark and mark and ("end" in problem or mark.line > error.context_mark.line):
        opens, closes = _OPENED[flow[1]]
        return _mistake(f"a {opens} opens on this line and is not closed by a {closes}", opened)
    if "\\t" in problem:
        return _mistake("the line is indented with a tab; indent with spaces", line)
    if "cannot start any token" in problem:
        return _mistake("a value begins with a character that needs quotes; write the value in quotes", line)
    if "while scanning an alias" in context or "undefined alias" in problem:
        return _mistake('a value begins with a *, which needs quotes; write "*" in quotes', line)
    if "could not determine a constructor" in problem:
        return _mistake("a value begins with !, which starts a type that is unknown; write the value in quotes", line)
    if "expected <block end>" in problem:
        return _mistake(f"this line does not fit the lines before it; {_CHECK}", line)
    kept = _QUOTED.sub(lambda match: match[0] if _SYNTAX.fullmatch(match[0][1:-1]) else "...", problem)
    return _mistake(f"{kept}; {_CHECK}", line)


def _mistake(words: str, line: int | None) -> Mistake:
    return Mistake(f"not YAML: {words}", None if line else (), line)


def _is_variable(text: str, index: int) -> bool:
    """Whether the brace at ``index`` is that of ``${``."""
    return text[index : index + 1] == "{" and text[max(index - 1, 0) : index] == "$"


def _long_quote(text: str, index: int) -> tuple[int, int] | None:
    """The first and the last line of the last quoted value before ``index``, if it is on several lines."""
    last = None
    try:
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if token.start_mark.index >= index:
                break
            if isinstance(token, yaml.ScalarToken) and token.style in ("'", '"'):
                last = token
    except yaml.YAMLError:
        pass
    if last is None or last.start_mark.line == last.end_mark.line:
        return None
    return last.start_mark.line + 1, last.end_mark.line + 1


def _line_of_character(error: Exception, text: str) -> int | None:
    position = getattr(error, "position", None)
    return text.count("\n", 0, position) + 1 if isinstance(position, int) else None
