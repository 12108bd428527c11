"""Keys: a Secret and a KeyDigest are printed as ``***``, and a KeySearch finds and hides keys in texts."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import NoReturn
from urllib.parse import quote

from aigw.key_forms import SHORTEST, KeyForms, Text, without
from aigw.string_search import StringSearch

_SCHEME = re.compile(r"(?:bearer|basic|token|key|api-?key) +(\S{8,})", re.IGNORECASE)
# A key of this form is long and mixed: an answer does not contain it by chance, as a number or as a member's name.
_UNMISTAKABLE = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9._~+/=:%-]{20,}")
PREFIX = "aigw_"
MADE_HERE = re.compile(rf"{PREFIX}[A-Za-z0-9]{{40}}")  # the form of the keys that the gateway makes for callers
_SIGNING = b"aigw cookie signing key 2"
_BACKSLASHES = r"\\(?:\\|(?<=\\)u(?i:005c))*"  # a run of backslashes, each plain or escaped
_FIRST = r"(?<!\\)(?<!\\u(?i:005c))"  # the start of such a run


def _forms(value: str) -> re.Pattern[str]:
    """A pattern that finds ``value`` in JSON, whatever characters are escaped and however often.

    A match begins only at the first of a run of backslashes. A search from each of 30,000 would take seconds.
    """
    parts: list[str] = []
    before = ""
    for part in re.findall(r"\\+|[^\\]", value):
        if part[0] == "\\":
            parts.append(_BACKSLASHES if parts else _FIRST + _BACKSLASHES)
        else:
            escapes = "" if before == "\\" else r"\\*" if parts else r"(?:(?<!\\)\\+)?"
            parts.append(rf"{escapes}(?:{re.escape(part)}|(?<=\\){_escape(part)})")
        before = part[0]
    return re.compile("".join(parts))


def _escape(character: str) -> str:
    """A pattern of the character's JSON escape, or of its pair of surrogates, without the first backslash."""
    units = character.encode("utf-16-be").hex()
    return r"\\+".join(f"u(?i:{units[at : at + 4]})" for at in range(0, len(units), 4))


class Secret:
    """A key. It shows as ``***`` wherever it is printed, formatted or logged, and cannot be pickled or JSON-encoded.

    ``variables`` are the names of those that it was made from. They may be shown.
    """

    __slots__ = ("_bytes", "_forms", "_known_forms", "_value", "variables")

    def __init__(self, value: str, variables: Sequence[str] = ()) -> None:
        self._value = value
        self.variables = tuple(variables)
        self._bytes = value.encode()
        self._forms: re.Pattern[str] | None = None  # compiled at the first use, because that takes a millisecond
        self._known_forms: KeyForms | None = None

    @property
    def _encoded(self) -> KeyForms:
        """The forms in which it may be repeated, made at first use: most keys of callers are hidden by their form."""
        self._known_forms = forms = self._known_forms or KeyForms(self._value)
        return forms

    def reveal(self) -> str:
        """The key itself; called only where the headers for a provider or a proxy are made."""
        return self._value

    def matches(self, candidate: bytes) -> bool:
        """Whether ``candidate`` is this key, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self._bytes, candidate)

    def is_made_here(self) -> bool:
        """Whether it has the form by which such keys are hidden, whether they are known or not."""
        return MADE_HERE.fullmatch(self._value) is not None

    def digest(self) -> KeyDigest:
        """The SHA-256 of the key."""
        return KeyDigest(sha256(self._bytes).digest())

    def signature(self, data: bytes) -> str:
        """The HMAC-SHA256 of ``data``, in hexadecimal. Only an owner of the key can compute it.

        The HMAC's key is derived from this one and used for signatures only.
        """
        return hmac.digest(hmac.digest(self._bytes, _SIGNING, "sha256"), data, "sha256").hex()

    def signs(self, data: bytes, signature: str) -> bool:
        """Whether ``signature`` is the signature of ``data``, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.signature(data).encode(), signature.encode())

    def hide_in(self, text: str) -> str:
        """``text`` with ``***`` for each occurrence of the key, plain or escaped as in JSON.

        A text without the key is returned as the same object.
        """
        if "\\" in text:
            self._forms = forms = self._forms or _forms(self._value)
            if forms.search(text):
                text = forms.sub("***", text)
        return text.replace(self._value, "***") if self._value in text else text

    def out_of(self, data: bytes) -> bytes:
        """``data`` with ``***`` for the plain key. Nothing is replaced where the key may be an ordinary word."""
        if data.find(self._bytes) >= 0 and _UNMISTAKABLE.fullmatch(self._value):
            return data.replace(self._bytes, b"***")
        return data

    def token(self) -> Secret | None:
        """KEY, if this is a header's value of the form ``Bearer KEY``; else None."""
        written = _SCHEME.fullmatch(self._value)
        return Secret(written[1]) if written else None

    def in_url(self) -> Secret:
        """The key as it is sent in the query of a URL, percent-encoded."""
        return Secret(quote(self._value, safe=""))

    def _is_ordinary(self) -> bool:
        """Whether each escaped form of the key becomes the key again when the escapes are removed."""
        value = self._value
        return len(value) >= SHORTEST and value.isascii() and value.isprintable() and not set(value) & set(" %\\")

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.matches(other._bytes)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "***"

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")


class KeyDigest:
    """The SHA-256 of a key, by which the gateway knows a key that it does not have. It shows as ``***``, as a key does.

    A plain hash is enough for a key of many random characters: nothing shorter than the key can be tried in its place.
    """

    __slots__ = ("sha256",)

    def __init__(self, sha256: bytes) -> None:
        self.sha256 = sha256

    def matches(self, digest: bytes) -> bool:
        """Whether ``digest`` is this one, in a time that does not depend on where they differ."""
        return hmac.compare_digest(self.sha256, digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyDigest) and self.matches(other.sha256)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyDigest cannot be pickled or copied")


class KeySearch:
    """Finds and hides a set of keys in texts, with one search for all keys."""

    __slots__ = ("_base64", "_by_form", "_escaped", "_has_hashed", "_hex", "_plain", "_raw", "_secrets", "_values")

    def __init__(self, secrets: Iterable[Secret], has_hashed: bool = False) -> None:
        """``has_hashed``: there are keys of which only the hash is known, so ``hide`` hides what has that form."""
        self._has_hashed = has_hashed
        self._secrets = tuple(sorted(dict.fromkeys(secrets), key=len, reverse=True))  # one may begin with another
        by_form: dict[str, list[Secret]] = {}
        for secret in self._secrets:
            for form in {secret._value, *secret._encoded.plain, *secret._encoded.hex, *secret._encoded.base64}:
                by_form.setdefault(form, []).append(secret)
        self._by_form = by_form
        values = {secret._value for secret in self._secrets}
        self._values = StringSearch(values)
        self._raw = self._same_or_new({secret._bytes.decode("latin-1") for secret in self._secrets}, values)
        self._plain = self._same_or_new({form for secret in self._secrets for form in secret._encoded.plain}, values)
        self._hex = StringSearch(form for secret in self._secrets for form in secret._encoded.hex)
        self._base64 = StringSearch(form for secret in self._secrets for form in secret._encoded.base64)
        # The keys that cannot always be found by removing the escapes. Each is searched for by its pattern.
        self._escaped = tuple(secret for secret in self._secrets if not secret._is_ordinary())

    def _same_or_new(self, strings: set[str], values: set[str]) -> StringSearch:
        """Most keys have nothing to be decoded: one search is for all then."""
        return self._values if strings == values else StringSearch(strings)

    def may_be_in(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a header's value contains a plain key, or the sign of an escape, which may be part of another one."""
        values = b"\n".join([value for _, value in headers]).decode("latin-1")
        return "\\" in values or "%" in values or bool(self._raw.found_in(values))

    def without(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """The headers whose values do not contain a key in any form."""
        return [header for header in headers if not self.are_in_any_form(header[1])]

    def hide(self, text: str) -> str:
        """``text`` with ``***`` for each key, plain or escaped as in JSON. A text without keys is the same object."""
        found = self._values.found_in(text)
        more: tuple[Secret, ...] = ()
        if "\\" in text:
            found += self._plain.found_in(Text(text).plain)
            more = self._escaped
        if found or more:
            for secret in self._of(found, *more):
                text = secret.hide_in(text)
        if self._has_hashed and PREFIX in text and MADE_HERE.search(text):
            text = MADE_HERE.sub("***", text)
        return text

    def are_in_any_form(self, data: bytes) -> bool:
        """Whether ``data`` contains one of the keys, plain or in one of its forms."""
        return bool(self._suspects(data.decode(errors="replace")))

    def hide_any_form(self, text: str) -> str:
        """``text`` with ``***`` for each key, plain or in one of its forms. A text without keys is the same object."""
        found = self._suspects(text)
        for secret in found:
            text = secret.hide_in(text)
        return without([secret._encoded for secret in found], text) if found else text

    def _suspects(self, text: str) -> list[Secret]:
        read = Text(text)
        found = [
            *self._values.found_in(text),
            *self._plain.found_in(read.plain),
            *self._hex.found_in(read.hex),
            *self._base64.found_in(read.base64),
        ]
        return self._of(found, *(secret for secret in self._escaped if secret.hide_in(text) is not text))

    def _of(self, forms: list[str], *more: Secret) -> list[Secret]:
        """The keys that have these forms, the longest first."""
        found = {secret for form in forms for secret in self._by_form[form]}
        return sorted(found.union(more), key=len, reverse=True)


class TwoSearches(KeySearch):
    """Two sets of keys as one. To replace the second, the first need not be prepared again, which takes long."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: KeySearch, second: KeySearch) -> None:
        self._first = first
        self._second = second

    def may_be_in(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """See KeySearch."""
        headers = list(headers)
        return self._first.may_be_in(headers) or self._second.may_be_in(headers)

    def without(self, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """See KeySearch."""
        return self._first.without(self._second.without(headers))

    def hide(self, text: str) -> str:
        """See KeySearch."""
        return self._first.hide(self._second.hide(text))

    def are_in_any_form(self, data: bytes) -> bool:
        """See KeySearch."""
        return self._first.are_in_any_form(data) or self._second.are_in_any_form(data)

    def hide_any_form(self, text: str) -> str:
        """See KeySearch."""
        return self._first.hide_any_form(self._second.hide_any_form(text))
