"""What a step changes in the body of a request, member by member."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from aigw.explain.explained import Change
from aigw.protocols.shaping import Difference
from aigw.protocols.walk import Members
from aigw.settings.bodies import BodyChanges

_ASKED = {  # where a stream is asked for its usage
    "stream_options": msgspec.Raw(b'{"include_usage":true}'),
    "stream_options.include_usage": msgspec.Raw(b"true"),
}


def changes_of(
    members: Members, model: msgspec.Raw, difference: Difference, changes: BodyChanges | None
) -> Iterator[Change]:
    """The ``difference`` between a client's body and that for a step, and the ``model``.

    Values are those of the settings. Of the client's there is the size.
    """
    given = {name: msgspec.Raw(value.shown) for name, value in (changes.default + changes.set if changes else ())}
    before = members.get("model")
    if before is None or bytes(before) != bytes(model):
        yield Change("model", "added" if before is None else "replaced", value=model)
    inner = [name for name in difference.dropped if name not in members and "." in name]
    for name in difference.dropped:
        if name not in inner:
            yield Change(name, "removed", _size(members, name))
    for name, new in difference.renamed:
        yield Change(name, "renamed", _size(members, name), to=new)
    for name in difference.replaced:
        yield Change(name, "replaced", _size(members, name), value=given.get(name))
    for name in difference.added:
        yield Change(name, "added", value=given.get(name) or _ASKED.get(name))
    for name in inner:  # last, for the settings may have added what it was in
        yield Change(name, "removed")


def _size(members: Members, name: str) -> int | None:
    return len(members[name]) if name in members else None
