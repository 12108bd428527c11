"""An explanation as text for people, and as JSON. No key is in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from aigw.explain.explained import Change, Explained, ExplainedStep
from aigw.secret import KeySearch

_FOUND_BY = {
    "name": "by its name",
    "also": "by its other name {name!r}",
    "pattern": "by {name!r}; * is {star!r}",
    "default_for": "the default for requests without a model",
}
_LATER = "ask the gateway that runs: POST /explain"


def as_text(found: Explained, keys: KeySearch) -> str:
    """A line for the request, the route and each step, and below a step one for each change of the body."""
    lines = [keys.hide_any_form(line) for line in _lines(found)]
    return "".join(f"{_printable(line)}\n" for line in lines)


def as_json(found: Explained, keys: KeySearch) -> bytes:
    """The same for programs."""
    shown = _hidden(msgspec.json.decode(msgspec.json.encode(found)), keys)
    return msgspec.json.format(msgspec.json.encode(shown), indent=2) + b"\n"


def _lines(found: Explained) -> Iterator[str]:
    model = f", model {found.model!r}" if found.model is not None else ", no model" if found.members else ""
    streamed = ", streamed" if found.stream else ""
    yield f"request: POST /v1/{found.endpoint}{model}, {found.bytes} bytes{streamed}"
    if found.members:
        listed = ", ".join(f"{name} ({size} bytes)" for name, size in found.members.items())
        yield f"members: {listed}"
    if found.found_by is not None:
        by = _FOUND_BY[found.found_by].format(name=found.name, star=found.star)
        yield f"route: {found.route} ({by})"
    if found.session is not None:
        yield f"session: from {found.session}"
    for note in found.notes:
        yield f"note: {note}"
    if found.passed_over:
        yield "steps that are not tried:"
    for each in found.passed_over:
        yield f"  step {each.step}: {each.provider}: {each.model} ({each.reason})"
    if found.error is not None:
        code = f" {found.error.code}" if found.error.code else ""
        yield f"answer: {found.error.status}{code}: {found.error.message}"
        return
    if not found.cooldowns_known:
        yield f"cooldowns: unknown here, so no step cools down; {_LATER}"
    yield "steps, in the order in which they are tried:"
    for step in found.steps:
        yield from _of_step(step)


def _of_step(step: ExplainedStep) -> Iterator[str]:
    cooling = f", cools down for {step.cools_down_s} s" if step.cools_down_s is not None else ""
    probe = ", its cooldown is over and this request finds out whether it works again" if step.probe else ""
    position = f", target {step.target}" if step.target is not None else ""
    position += f", key {step.key}" if step.key is not None else ""
    choice = f" ({step.choice})" if step.choice is not None else ""
    yield f"  step {step.step}{position}: {step.provider}: {step.model}{choice}{cooling}{probe}"
    yield f"    POST {step.url}, {step.bytes} bytes"
    for change in step.changes:
        yield f"    {_of_change(change)}"


def _of_change(change: Change) -> str:
    value = "" if change.value is None else bytes(change.value).decode()
    if change.change == "removed":
        return f"{change.member} is removed" + (f" ({change.size} bytes)" if change.size is not None else "")
    if change.change == "renamed":
        return f"{change.member} becomes {change.to} ({change.size} bytes)"
    if change.change == "added":
        return f"{change.member} is added" + (f": {value}" if value else "")
    return f"{change.member} becomes {value}" if value else f"{change.member} is replaced"


def _printable(text: str) -> str:
    return "".join([each if each.isprintable() else "?" for each in text])


def _hidden(value: Any, keys: KeySearch) -> Any:
    """A decoded JSON value without keys."""
    if isinstance(value, str):
        return keys.hide_any_form(value)
    if isinstance(value, list):
        return [_hidden(each, keys) for each in value]
    if isinstance(value, dict):
        return {keys.hide_any_form(name): _hidden(each, keys) for name, each in value.items()}
    return value
