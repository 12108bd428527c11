"""Hiding keys in log lines, pages and spans. The service owns one Redaction and passes it to the code that needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from aigw.secret import KeySearch, Secret, TwoSearches

OLD_SECRETS = 200  # keys of earlier configurations that are still hidden

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"(:?)')  # a string before a colon is a name


class Redaction:
    """Hides the keys of the configuration and of earlier ones, because requests that began with those may still run.

    It hides nothing until the first ``use``: no key has been read until then. Every thread may call it.
    """

    def __init__(self, secrets: Sequence[Secret] = ()) -> None:
        self._secrets: list[Secret] = []
        self._changing: Sequence[Secret] = ()
        self._has_hashed = False
        self.use(secrets)

    def use(self, secrets: Sequence[Secret], has_hashed: bool = False) -> None:
        """Hide these keys too from now on. Of the older keys the last OLD_SECRETS are still hidden.

        ``has_hashed``: there are keys of which only the hash is known, so whatever has the form of one is hidden.
        """
        known = set(secrets)
        older = [secret for secret in self._secrets if secret not in known]
        self._secrets = [*older[-OLD_SECRETS:], *secrets]
        self._has_hashed = self._has_hashed or has_hashed
        self._fixed = KeySearch(self._secrets, self._has_hashed)
        self.use_changing(self._changing)

    def use_changing(self, secrets: Sequence[Secret]) -> None:
        """Hide these keys, which change between two configurations, in place of the last ones that were given so."""
        self._changing = secrets
        both = TwoSearches(self._fixed, KeySearch(secrets)) if secrets else self._fixed
        # From a text to the text without keys; the same object if the text has none.
        self.hide = both.hide

    def hide_in_values(self, text: bytes) -> bytes:
        """``text``, which is JSON or metrics, without keys in its values. Names stay: a key may be equal to a name."""
        before = text.decode()
        if self.hide(before) is before:
            return text
        return _QUOTED.sub(lambda each: each[0] if each[1] else self.hide(each[0]), before).encode()
