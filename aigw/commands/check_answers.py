"""What ``--check-providers`` asks of each step, and what the bodies of the providers' answers show."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aigw.commands.check_report import Checked, CheckedStep
from aigw.config.model import Route, Step
from aigw.routing.route_names import sent_models
from aigw.settings.patterns import STAR


def models_in(data: bytes) -> frozenset[str] | None:
    """The ids in OpenAI's list; some providers write them as ``models/NAME``."""
    try:
        read = msgspec.json.decode(data)
        entries = read["data"] if isinstance(read, dict) else read
        ids = [entry["id"] for entry in entries]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return frozenset(each.removeprefix("models/") for each in ids if isinstance(each, str))


def has_list(data: bytes, member: str) -> bool:
    """Whether the answer is an object whose ``member`` is a list that is not empty."""
    try:
        read = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, dict) and isinstance(read.get(member), list) and bool(read[member])


def asked_of(route: Route) -> Iterator[tuple[Step, str]]:
    """Each step with each model that it is known to send; with its own, which has a star, if none is known."""
    for step in route.steps:
        for model in sent_models(route, step) or [step.model]:
            yield step, model


def apply_list(step: CheckedStep, provider: Checked) -> None:
    """Note what the provider's list of models shows of the step."""
    if STAR in step.model:
        step.works, step.problem = (False if provider.problem else None), provider.problem
        step.note = None if provider.problem else "clients choose the model; name some in models of the route"
        return
    if provider.models is not None:
        step.listed = step.model in provider.models or f"{step.model}:latest" in provider.models
    if provider.problem or step.listed is False:
        step.works, step.problem = False, provider.problem or "the provider does not list the model; correct model"
    elif step.listed and (provider.key or not provider.key_needed):
        step.works = True
    else:
        step.note = provider.note
