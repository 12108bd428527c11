"""Which step answered with which id: only its provider has what the id names.

The state is bounded and outlives a reload; nothing here touches the network.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MOST = 20_000

# What goes into a URL: no slash, no percent sign, no dots alone, so that no id names another path of the provider.
is_id = re.compile(r"(?!\.+\Z)[A-Za-z0-9_.~:+=-]{1,512}").fullmatch


class Place(NamedTuple):
    """The place of an id: the provider, the model and the route that were asked, and the digest of the key."""

    provider: str
    model: str = ""
    route: str = ""
    key: bytes = b""


class ResponseIds:
    """The places of the ids that were given to each caller. Of too many, the one that was used least lately is
    forgotten."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], Place] = {}
        self._known: dict[Place, Place] = {}  # equal ones are one object

    def note(self, caller: str, response_id: str, place: Place) -> None:
        """The caller has got the id from there."""
        if not is_id(response_id):
            return
        if len(self._known) > MOST:
            self._known.clear()
        self._put((caller, response_id), self._known.setdefault(place, place))

    def place(self, caller: str, response_id: str) -> Place | None:
        """The place of the id, if the caller got it; an id of another caller is unknown."""
        key = caller, response_id
        found = self._places.pop(key, None)
        if found is not None:
            self._put(key, found)
        return found

    def forget(self, caller: str, response_id: str) -> None:
        """The response is deleted."""
        self._places.pop((caller, response_id), None)

    def _put(self, key: tuple[str, str], place: Place) -> None:
        self._places.pop(key, None)
        self._places[key] = place
        if len(self._places) > MOST:
            del self._places[next(iter(self._places))]
