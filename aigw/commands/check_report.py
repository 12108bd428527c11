"""The report of ``--check-providers``, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from aigw.settings.patterns import STAR

_WORDS = {True: "yes", False: "no", None: "-"}


class Checked(msgspec.Struct):
    """One provider. ``certificate`` and ``key`` are True, False, or None if there is none or it is unknown.

    ``problem`` is why no step of it can work; ``note`` is other information. ``models`` is None without a list.
    ``key_number`` is the position of its key from 1, if it has several: each of them is asked with.
    """

    provider: str
    reachable: bool = False
    certificate: bool | None = None
    key: bool | None = None
    latency_ms: int | None = None
    problem: str | None = None
    note: str | None = None
    models: frozenset[str] | None = None
    key_needed: bool = True
    key_number: int | None = None


class CheckedStep(msgspec.Struct):
    """One step. ``works`` is None if it is unknown, ``listed`` if the provider gives no list.

    ``problem`` is why it does not work; ``note`` is why that is unknown, or other information. ``key_number`` is as in
    Checked.
    """

    route: str
    step: int
    provider: str
    model: str
    works: bool | None = None
    listed: bool | None = None
    tried: bool = False
    problem: str | None = None
    note: str | None = None
    key_number: int | None = None


def as_text(checked: Sequence[Checked], steps: Sequence[CheckedStep]) -> str:
    """Two tables."""
    providers = [["provider", "reachable", "certificate", "key", "latency", ""]]
    for each in checked:
        latency = "-" if each.latency_ms is None else f"{each.latency_ms} ms"
        verdicts = [_WORDS[each.reachable], _WORDS[each.certificate], _WORDS[each.key]]
        providers.append([_named(each), *verdicts, latency, each.problem or each.note or ""])
    rows = [["route", "step", "provider", "model", "listed", "works", ""]]
    for step in steps:
        works = "unknown" if step.works is None else _WORDS[step.works]
        words = step.problem or step.note or ""
        rows.append([step.route, str(step.step), _named(step), step.model, _WORDS[step.listed], works, words])
    return f"{_table(providers)}\n\n{_table(rows)}\n\n{_sum(steps)}"


def _named(one: Checked | CheckedStep) -> str:
    return one.provider if one.key_number is None else f"{one.provider} key {one.key_number}"


def _sum(steps: Sequence[CheckedStep]) -> str:
    good = sum(step.works is True for step in steps)
    unknown = [step for step in steps if step.works is None]
    text = f"{good} of {len(steps)} steps can work."
    if unknown:
        text += f" For {len(unknown)} that is unknown."
        if not all(step.tried or STAR in step.model for step in unknown):
            text += " To find out, send a real request of one token to each step with --try."
    return text


def as_json(checked: Sequence[Checked], steps: Sequence[CheckedStep]) -> str:
    """The same as JSON; of a provider's models only their number."""
    providers = []
    for each in checked:
        shown = {**msgspec.structs.asdict(each), "models": None if each.models is None else len(each.models)}
        del shown["key_needed"]
        providers.append(_with_key(shown))
    shown_steps = [_with_key(msgspec.structs.asdict(step)) for step in steps]
    shape = {"works": all(step.works for step in steps), "providers": providers, "steps": shown_steps}
    return msgspec.json.format(msgspec.json.encode(shape), indent=2).decode()


def _with_key(shown: dict[str, object]) -> dict[str, object]:
    """Without the position of the key where the provider has one key or none."""
    if shown["key_number"] is None:
        del shown["key_number"]
    return shown


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
