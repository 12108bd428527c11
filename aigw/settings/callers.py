"""Who may call, and how much: the keys and groups as they are written, and the Callers that they become."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec

from aigw.secret import KeyDigest, Secret
from aigw.settings.credentials import Key
from aigw.settings.limit_values import (
    Dollars,
    KeyHash,
    Moment,
    Rate,
    RateLimit,
    RoutePattern,
    Slots,
    Tokens,
    Zone,
    matches,
)
from aigw.settings.mistakes import Mistake, Path, shown
from aigw.settings.quoting import quoted
from aigw.settings.schema import Named
from aigw.settings.values import NAME, Drain, Flag, Name

DEFAULT = "default"  # the caller with api_key
ADMIN = "admin"  # who has admin_key
ASSUMED = 1000  # tokens of an answer whose length the request does not limit
EXPIRY_DAYS = 14.0
MOST_EXPIRING = 20  # keys that are named in warnings
PICO = 10**12  # amounts of money are whole numbers of 1e-12 USD, so that sums are exact


class BudgetLimit(msgspec.Struct, frozen=True, kw_only=True):
    """So many tokens, or so many US dollars, in each period of the calendar of ``zone``."""

    tokens: Tokens | None = None
    usd: Dollars | None = None
    per: Literal["hour", "day", "week", "month", "year"]
    zone: Zone = "UTC"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one key, or all keys of a group together, may use. None: as in ``defaults``, else no limit."""

    requests: RateLimit | None = None
    tokens: RateLimit | None = None
    concurrency: Slots | None = None
    budget: tuple[BudgetLimit, ...] = ()


class Group(Limits, frozen=True, kw_only=True):
    """A set of limits that several keys share."""

    name: Name


class KeyDefaults(Limits, frozen=True, kw_only=True):
    """What holds for a key that does not have the setting itself.

    ``routes`` are those that it may use, all if empty. ``assume`` is how many tokens are reserved for an answer whose
    length the request does not limit. ``wait`` is how many seconds a request may wait for a slot of ``concurrency``.
    """

    routes: tuple[RoutePattern, ...] = ()
    assume: Tokens | None = None
    wait: Drain | None = None
    tags: tuple[Name, ...] = ()


class NamedKey(KeyDefaults, frozen=True, kw_only=True):
    """One key of a caller, refused from ``expires`` or ``not_after`` on. Several of one name are one caller."""

    name: Name
    key: Key | None = None
    key_sha256: KeyHash | None = None
    expires: Moment | None = None
    not_after: Moment | None = None
    disabled: Flag = False
    group: Annotated[Group | None, Named("groups", NAME)] = None


class KeysFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a file of keys holds."""

    groups: dict[str, Group] = {}
    defaults: KeyDefaults | None = None
    keys: tuple[NamedKey, ...] = ()


class Proof(msgspec.Struct, frozen=True):
    """By which a caller is known: a key's hash. From ``until`` on, in Unix seconds, it is refused.

    ``source`` is where it comes from: the setting, variables and the place of the entry.
    """

    digest: KeyDigest
    until: float | None = None
    disabled: bool = False
    source: str = ""


class Budgeted(msgspec.Struct, frozen=True):
    """A budget, resolved. What is used is counted by ``key``; ``limit`` is in tokens, or in PICO if ``in_usd``."""

    key: str
    limit: int
    in_usd: bool
    per: str
    zone: str


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one caller or one group, resolved: None is no limit. What is used is counted by ``name``."""

    name: str
    requests: Rate | None = None
    tokens: Rate | None = None
    concurrency: int | None = None
    budgets: tuple[Budgeted, ...] = ()

    @property
    def has_limits(self) -> bool:
        """Whether anything is limited."""
        return bool(self.requests or self.tokens or self.concurrency or self.budgets)


class Caller(msgspec.Struct, frozen=True):
    """A client or a group of clients. It has a ``key``, or ``proofs`` of keys that the gateway does not have.

    ``routes`` are patterns of those that it may use, all if empty. ``accounts`` have its limits, none if empty.
    ``group`` is the name of its group, if it has one.
    """

    name: str
    key: Secret | None = None
    proofs: tuple[Proof, ...] = ()
    routes: tuple[str, ...] = ()
    accounts: tuple[Account, ...] = ()
    assume: int = ASSUMED
    wait: float = 0.0
    tags: tuple[str, ...] = ()
    group: str = ""

    @property
    def expires(self) -> float | None:
        """When the first of its keys that have an end expires, in Unix seconds."""
        return min((each.until for each in self.proofs if each.until and not each.disabled), default=None)


_OF_ONE_KEY = frozenset(["name", "key", "key_sha256", "expires", "not_after", "disabled"])


class Callers:
    """Collects the callers of several files. A mistake is yielded with its path in the file that is being added."""

    def __init__(self, taken: Mapping[str, Secret]) -> None:
        """``taken`` has the keys that are settings of their own, by the names of who has them."""
        self._taken = taken
        self._known = {key.digest(): f"that of {name}" for name, key in taken.items()}
        self._first: dict[str, tuple[NamedKey, str]] = {}
        self._proofs: dict[str, list[Proof]] = {}
        self._made: dict[str, tuple[KeyDefaults, Group | None]] = {}

    def add(self, keys: Sequence[NamedKey], defaults: KeyDefaults | None, file: str = "") -> Iterator[Mistake]:
        """The keys of one file, which messages call ``file``."""
        for index, key in enumerate(keys):
            path: Path = ("keys", index)
            digest = key.key_sha256 or (key.key.digest() if key.key else None)
            if digest is None or (key.key and key.key_sha256):
                text = "needs one of key and key_sha256; aigw new-key NAME prints a key and its line"
                yield Mistake(text, path)
                continue
            if key.name in self._taken:
                setting = "admin_key" if key.name == ADMIN else "api_key"
                yield Mistake(f"is the name of who has {setting}; write another name", (*path, "name"))
                continue
            here = f"{shown(path)}{f' of {file}' if file else ''}"
            if self._known.setdefault(digest, here) is not here:
                yield Mistake(f"has the same key as {self._known[digest]}; each entry needs a key of its own", path)
            first, where = self._first.setdefault(key.name, (key, here))
            if first is not key:
                yield from _other_than_the_first(key, first, where, path)
            ends = [each for each in (key.expires, key.not_after) if each is not None]
            proof = Proof(digest, min(ends, default=None), key.disabled, f"{_setting(key)}, {here}")
            self._proofs.setdefault(key.name, []).append(proof)
            if first is key:
                self._made[key.name] = _resolved(key, defaults), key.group

    def callers(self) -> tuple[Caller, ...]:
        """All of them; without mistakes."""
        shared: dict[str, Account] = {}
        made = []
        for name, (settings, group) in self._made.items():
            accounts = [_account(f"key {name}", settings)]
            if group is not None:
                label = f"group {group.name}"
                accounts.append(shared.setdefault(label, _account(label, group)))
            caller = Caller(
                name,
                proofs=tuple(self._proofs[name]),
                routes=settings.routes,
                accounts=tuple(each for each in accounts if each.has_limits),
                assume=settings.assume or ASSUMED,
                wait=settings.wait or 0.0,
                tags=settings.tags,
                group=group.name if group is not None else "",
            )
            made.append(caller)
        return tuple(made)


def _setting(key: NamedKey) -> str:
    """Which setting has the key, and the variables that it comes from."""
    if key.key is None:
        return "key_sha256"
    return f"key from {' '.join(f'${{{name}}}' for name in key.key.variables)}" if key.key.variables else "key"


def _other_than_the_first(key: NamedKey, first: NamedKey, where: str, path: Path) -> Iterator[Mistake]:
    """Two entries of one name are two keys of one caller, so they cannot have different limits."""
    empty = NamedKey(name=key.name)
    for name in NamedKey.__struct_fields__:
        value = getattr(key, name)
        if name not in _OF_ONE_KEY and value not in (getattr(empty, name), getattr(first, name)):
            text = f"differs from that of {where}, the first key of this name; write it there only"
            yield Mistake(text, (*path, name))


def _resolved(key: NamedKey, defaults: KeyDefaults | None) -> KeyDefaults:
    if defaults is None:
        return key
    written = {name: getattr(key, name) for name in KeyDefaults.__struct_fields__}
    return KeyDefaults(
        **{name: getattr(defaults, name) if value in (None, ()) else value for name, value in written.items()}
    )


def _account(name: str, limits: Limits) -> Account:
    requests, tokens = limits.requests, limits.tokens
    return Account(
        name=name,
        requests=requests if requests and requests.limit else None,
        tokens=tokens if tokens and tokens.limit else None,
        concurrency=limits.concurrency or None,
        budgets=tuple(map(_budgeted, limits.budget)),
    )


def _budgeted(budget: BudgetLimit) -> Budgeted:
    in_usd, per = budget.usd is not None, budget.per
    limit = round((budget.usd or 0.0) * PICO) if in_usd else budget.tokens or 0
    return Budgeted(f"{'usd' if in_usd else 'tokens'} per {per}", limit, in_usd, per, budget.zone)


def budgets_crossed(limits: Limits, path: Path) -> Iterator[Mistake]:
    """Mistakes in the budgets of one key, group or ``defaults``."""
    seen: dict[tuple[bool, str], int] = {}
    for index, budget in enumerate(limits.budget):
        here = (*path, "budget", index)
        if (budget.tokens is None) == (budget.usd is None):
            yield Mistake("needs one of tokens and usd, such as {tokens: 5M, per: month}", here)
        elif seen.setdefault((budget.usd is None, budget.per), index) != index:
            yield Mistake(f"has the unit and the period of another budget; keep one per {budget.per}", here)


def advice_on_keys(keys: Sequence[NamedKey], routes: Collection[str]) -> Iterator[Mistake]:
    """Warnings: a pattern that stands for no route."""
    known: dict[str, bool] = {}
    for index, key in enumerate(keys):
        for number, pattern in enumerate(key.routes):
            if pattern not in known:
                known[pattern] = pattern in routes or any(matches((pattern,), name) for name in routes)
            if not known[pattern]:
                yield Mistake(f"{quoted(pattern)!r} is the name of no route", ("keys", index, "routes", number))


def expiry_warnings(callers: Sequence[Caller], now: float) -> list[str]:
    """A warning for each key that is over, or soon is, by its end; ``now`` in Unix seconds. Many are one at the end."""
    ends = sorted(
        (proof.until, caller.name, proof.source)
        for caller in callers
        for proof in caller.proofs
        if proof.until is not None and not proof.disabled and proof.until - now < EXPIRY_DAYS * 86400
    )
    shown = [
        f"the key of {quoted(name)!r} {_when(until - now)} ({source}); replace it, or remove the entry"
        for until, name, source in ends[:MOST_EXPIRING]
    ]
    return [*shown, *([f"{more} more keys have expired or expire soon"] if (more := len(ends) - len(shown)) else [])]


def _when(seconds: float) -> str:
    return "has expired and is refused" if seconds <= 0 else f"expires in {seconds / 86400:.1f} days"
