"""The keys that stand in no log line, on no page and in no span. The service owns one Redaction and hands it down."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aigw.secret import KeySearch, Secret

OLD_SECRETS = 200  # of configurations before a reload

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"(:?)')  # with a colon behind it it is a name


class Redaction:
    """Hides the keys that it was given last, and those of before: requests that began with them may still run.

    Until it is given any it hides nothing: then nothing that was read can hold one. Every thread may ask it.
    """

    def __init__(self, secrets: Sequence[Secret] = ()) -> None:
        self._secrets: list[Secret] = []
        self.use(secrets)

    def use(self, secrets: Sequence[Secret]) -> None:
        """Hide these from now on, wherever they should come from."""
        known = set(secrets)
        older = [secret for secret in self._secrets if secret not in known]
        self._secrets = [*older[-OLD_SECRETS:], *secrets]
        self.hide = KeySearch(
            self._secrets
        ).hide  # from a text to the text without keys; the same object if it has none

    def hide_in_values(self, text: bytes) -> bytes:
        """``text``, JSON or metrics, without a key in its values; a key may be a word that the form of it needs."""
        before = text.decode()
        if self.hide(before) is before:
            return text
        return _QUOTED.sub(lambda each: each[0] if each[1] else self.hide(each[0]), before).encode()
