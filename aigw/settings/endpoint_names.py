"""What endpoints are called in the configuration: by their paths behind ``/v1/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Protocol

from aigw.settings.mistakes import Mistake
from aigw.settings.quoting import did_you_mean
from aigw.settings.schema import Written

LISTED_FOR = frozenset(["chat/completions", "completions", "responses", "messages"])  # by GET /v1/models
MAY_LACK_MODEL = ("moderations", "images/generations", "images/edits", "images/variations")
NAMES = (
    *("chat/completions", "completions", "embeddings", "responses", "messages"),
    *("moderations", "rerank", "images/generations", "images/edits", "images/variations"),
    *("audio/transcriptions", "audio/translations", "audio/speech"),
)
PATHS = (*NAMES, "responses/compact", "responses/input_tokens", "messages/count_tokens", "models")


def _one_of(names: Sequence[str], what: str, value: object) -> str:
    if value in names:
        return str(value)
    raise ValueError(f"is not {what}; write one of {', '.join(names)}{did_you_mean(value, names)}")


EndpointName = Annotated[str, Written(lambda value: _one_of(NAMES, "an endpoint", value))]
"""The path of an endpoint behind ``/v1/``, such as ``embeddings``."""
DefaultName = Annotated[
    str, Written(lambda value: _one_of(MAY_LACK_MODEL, "an endpoint whose requests may have no model", value))
]
"""The same of one whose requests may leave out ``model``."""
PathName = Annotated[str, Written(lambda value: _one_of(PATHS, "an endpoint", value))]
"""The same of one with a path of its own, or ``models``, the list that only the gateway itself asks for."""


class _Provider(Protocol):
    def serves(self, endpoint: str) -> bool: ...


class _Step(Protocol):
    @property
    def provider(self) -> _Provider: ...


class _Route(Protocol):
    @property
    def default_for(self) -> frozenset[str]: ...

    @property
    def endpoints(self) -> frozenset[str]: ...

    @property
    def steps(self) -> Sequence[_Step]: ...


def defaults_crossed(routes: Mapping[str, _Route]) -> Iterator[Mistake]:
    """A mistake for each endpoint that has two default routes."""
    first: dict[str, str] = {}
    for index, (name, route) in enumerate(routes.items()):
        for endpoint in sorted(route.default_for):
            if first.setdefault(endpoint, name) != name:
                text = f"{endpoint} has a default route already, {first[endpoint]!r}; keep one of the two"
                yield Mistake(text, ("routes", index, "default_for"))


def unserved(routes: Mapping[str, _Route]) -> Iterator[Mistake]:
    """A mistake for each endpoint that a route is for, and that the provider of none of its steps serves."""
    for index, route in enumerate(routes.values()):
        for setting, wanted in (("endpoints", route.endpoints), ("default_for", route.default_for)):
            for endpoint in sorted(wanted):
                if not any(step.provider.serves(endpoint) for step in route.steps):
                    text = (
                        f"no step of the route serves {endpoint}, by the endpoints of its providers; "
                        "remove it here, or add it to a provider"
                    )
                    yield Mistake(text, ("routes", index, setting))
