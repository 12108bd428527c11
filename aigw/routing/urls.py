"""What follows the URL of an endpoint where the provider's path has the model in it, or the provider has a query."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, unquote_plus

from aigw.config.model import Provider
from aigw.settings.addresses import joined, path_at

_SEPARATORS = re.compile(b"([&;])")  # some servers read a semicolon as such


def url_of(provider: Provider, endpoint: str) -> str:
    """The URL of an endpoint, with ``{model}`` where its path has the model."""
    return joined(provider.base_url, path_at(provider.paths, endpoint))


class Tail:
    """``pieces`` are the parts of a path between which the model stands; ``query`` are the provider's names and values.

    The URL before it is one of few: a client may choose the model.
    """

    def __init__(self, pieces: Iterable[str], query: Iterable[tuple[str, str]]) -> None:
        self._pieces = list(pieces)
        written = {name: f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query}
        self._query = "&".join(written.values()).encode()
        self._names = {_plain(name) for name in written}

    def after(self, model: str, given: bytes) -> bytes:
        """The tail for a model. ``given`` is that of the request: a path below, and the client's query.

        A part of that query which has the name of one of the provider's is left out.
        """
        below, mark, asked = given.partition(b"?")
        quoted = quote(model, safe="")
        path = "".join([quoted + piece for piece in self._pieces]).encode() + below
        if not self._query:
            return path + mark + asked
        kept = self._without_own(asked)
        return b"%s?%s%s%s" % (path, self._query, b"&" if kept else b"", kept)

    def _without_own(self, asked: bytes) -> bytes:
        first, *more = _SEPARATORS.split(asked)
        parts = [(b"&", first), *zip(more[::2], more[1::2], strict=True)]
        kept = [separator + part for separator, part in parts if _name(part) not in self._names]
        return b"".join(kept)[1:]


def _name(part: bytes) -> str:
    """The name in ``name=value``, as a lenient server reads it."""
    return _plain(unquote_plus(part.partition(b"=")[0].decode("latin-1")).partition("[")[0])


def _plain(name: str) -> str:
    return name.strip().casefold()
