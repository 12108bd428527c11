"""What the settings of a step change in the top level of a request's body. All other bytes of its values stay."""

from __future__ import annotations

import msgspec

from aigw.protocols import envelope
from aigw.protocols.walk import Members
from aigw.settings.bodies import BodyChanges

_OPTIONS = "stream_options"
_ASKED = "include_usage"
_true = b'"include_usage":true'


class Difference(msgspec.Struct, frozen=True):
    """What a step changes in a body besides ``model``, by the names of members, or of fields of a form.

    ``dropped`` are members of the client's that the step does not get; ``text.format`` is a member of the member
    ``text``. ``renamed`` has the old and the new names. ``added`` were not there; ``replaced`` have another value.
    ``hides_usage``: the gateway asked for the usage of a stream, and the client did not. ``results`` is how many
    results a stream has, where the step changes that.
    """

    dropped: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    hides_usage: bool = False
    results: int | None = None

    def touches(self, name: str) -> bool:
        """Whether a member with this name is another one, or is not there any more, or is new."""
        return any([name in each for each in (self.dropped, self.added, self.replaced, *self.renamed)])


UNCHANGED = Difference()


def shaped(members: Members, changes: BodyChanges) -> tuple[Members, Difference]:
    """The members of a request for a step: what the client sent keeps its place, and new members are at the end.

    If the new name of a member is there already, the value with that name is sent, and the other one is dropped.
    """
    members = {**members}
    dropped = [name for name in changes.remove if members.pop(name, None) is not None]
    renamed = []
    for old, new in changes.rename:
        if old in members and new in members:
            del members[old]
            dropped.append(old)
        elif old in members:
            members = {new if name == old else name: raw for name, raw in members.items()}
            renamed.append((old, new))
    added: list[str] = []
    replaced: list[str] = []
    for name, value in changes.default:
        if name not in members:
            members[name] = msgspec.Raw(value.json)
            added.append(name)
    for name, value in changes.set:
        if name not in added:
            (replaced if name in members else added).append(name)
        members[name] = msgspec.Raw(value.json)
    return members, summed_up(dropped, renamed, added, replaced)


def summed_up(dropped: list[str], renamed: list[tuple[str, str]], added: list[str], replaced: list[str]) -> Difference:
    """The Difference; a member that is removed and then added has another value."""
    again = [name for name in added if name in dropped]
    return Difference(
        tuple(name for name in dropped if name not in again),
        tuple(renamed),
        tuple(name for name in added if name not in again),
        (*again, *replaced),
    )


def without(gone: list[str], difference: Difference) -> Difference:
    """The Difference where these members of the changed body are removed in the end.

    A member that the settings added was never the client's; one that was renamed is dropped by the client's name.
    """
    renamed, dropped = list(difference.renamed), list(difference.dropped)
    for name in gone:
        if name in difference.added:
            continue
        for pair in reversed(difference.renamed):
            if pair[1] == name:
                name = pair[0]
                renamed.remove(pair)
        dropped.append(name)
    return msgspec.structs.replace(
        difference,
        dropped=tuple(dropped),
        renamed=tuple(renamed),
        added=tuple(name for name in difference.added if name not in gone),
        replaced=tuple(name for name in difference.replaced if name not in gone),
    )


def asked_for_usage(client: Members, members: Members, difference: Difference) -> tuple[Members, Difference]:
    """``members`` of a stream with ``stream_options.include_usage``, if they lack it.

    The other options keep their bytes. ``client`` has the members that the client sent: one that asked itself gets the
    usage, whatever the step changes.
    """
    options = members.get(_OPTIONS)
    known = _options_in(options)
    if known is None or _ASKED in known:
        return members, difference
    made = bytes(options)[:-1] + b",%s}" % _true if options is not None and known else b"{%s}" % _true
    members = {**members, _OPTIONS: msgspec.Raw(made)}
    name = _OPTIONS if options is None else f"{_OPTIONS}.{_ASKED}"
    hides = bytes((_options_in(client.get(_OPTIONS)) or {}).get(_ASKED, b"")) != b"true"
    return members, msgspec.structs.replace(difference, added=(*difference.added, name), hides_usage=hides)


def _options_in(raw: msgspec.Raw | None) -> Members | None:
    """The members of ``stream_options``; none if it is absent or null, None if it is no object that can be read."""
    if raw is None:
        return {}
    if len(raw) > envelope.MOST_READ:
        return None
    written = bytes(raw)
    try:
        return {} if written == b"null" else envelope.split_members(written)
    except ValueError:
        return None
