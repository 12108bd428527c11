"""The metrics of callers, and of their limits: as many series as the configuration has keys and groups.

They are made in a thread, as all others of ``series`` are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from aigw.settings.callers import Account
from aigw.telemetry.counters import Counters
from aigw.telemetry.series import Family
from aigw.telemetry.series_names import NamedCaller, SeriesNames
from aigw.telemetry.snapshot import Snapshot

PIECE = 32  # accounts


def _requests(caller: NamedCaller) -> bytes:
    return b"aigw_caller_requests_total{%s} %d.0\n" % (caller[0], caller[1].requests)


def _refused(caller: NamedCaller) -> bytes:
    return b"aigw_caller_requests_refused_total{%s} %d.0\n" % (caller[0], caller[1].refused)


def _tokens(caller: NamedCaller) -> bytes:
    label, tokens = caller[0], caller[1].tokens
    lines = [b'aigw_caller_tokens_total{%s,type="%s"} %d.0\n' % (label, kind.encode(), n) for kind, n in tokens.items()]
    return b"".join(lines)


def _cost(caller: NamedCaller) -> bytes:
    return b"aigw_caller_cost_usd_total{%s} %s\n" % (caller[0], f"{caller[1].cost:f}".encode())


OF_CALLERS: tuple[tuple[Family, Callable[[NamedCaller], bytes]], ...] = (
    (Family("aigw_caller_requests", "counter", "Requests that have ended, by the key of the caller."), _requests),
    (
        Family(
            "aigw_caller_requests_refused", "counter", "Those of them that a limit of the key or of its group refused."
        ),
        _refused,
    ),
    (Family("aigw_caller_tokens", "counter", "Tokens that callers used, by disjoint kinds."), _tokens),
    (
        Family("aigw_caller_cost_usd", "counter", "What the requests of callers cost in USD, as far as it is known."),
        _cost,
    ),
)
_EXPIRY = Family(
    "aigw_caller_key_expiry_timestamp_seconds",
    "gauge",
    "When the first of the keys of a caller that have an end expires, in Unix time.",
)
_LIMIT = Family("aigw_limit", "gauge", "The limits of keys and groups.")
_REMAINING = Family(
    "aigw_limit_remaining", "gauge", "What is left of them, without what running requests have reserved."
)
_UNPRICED = Family(
    "aigw_unpriced_requests",
    "counter",
    "Charged attempts with an unknown cost: the model has no price, or no usage was reported.",
)
_LOST = Family("aigw_usage_lines_lost", "counter", "Lines of the file of usage that could not be written.")


def of_accounts(
    counters: Counters, live: Snapshot, names: SeriesNames
) -> Generator[None, None, list[tuple[Family, list[bytes]]]]:
    """The other metrics, each with its lines, made in short steps."""
    ends = [
        f"{_EXPIRY.name}{{{names.label('caller', each.name)}}} {each.expires!r}\n".encode()
        for each in live.config.callers
        if each.expires is not None
    ]
    yield
    limits: list[bytes] = []
    remaining: list[bytes] = []
    accounts = {each.name: each for caller in live.config.callers for each in caller.accounts}
    for number, account in enumerate(accounts.values(), 1):
        for label, limit, left in _limits(account, live, names):
            limits.append(f"{_LIMIT.name}{label} {limit}\n".encode())
            remaining.append(f"{_REMAINING.name}{label} {left}\n".encode())
        if number % PIECE == 0:
            yield
    unpriced = [
        f"{_UNPRICED.name}_total{{{names.model_labels(*key)}}} {n}.0\n".encode()
        for key, n in counters.unpriced.copy().items()
    ]
    lost = [b"%s_total %d.0\n" % (_LOST.name.encode(), counters.lines_lost)]
    return [(_EXPIRY, ends), (_LIMIT, limits), (_REMAINING, remaining), (_UNPRICED, unpriced), (_LOST, lost)]


def _limits(account: Account, live: Snapshot, names: SeriesNames) -> list[tuple[str, str, str]]:
    """The labels, the limit and what is left for each limit of a key or a group, by the numbers that decide."""
    if live.limits_of is None:
        return []
    kind, _, whose = account.name.partition(" ")
    label = names.label("caller" if kind == "key" else kind, whose)
    limits: dict[str, Any] = live.limits_of(account)["limits"]
    lines = [
        (f'{{{label},limit="{name}"}}', f"{limits[name]['limit']}.0", f"{limits[name]['remaining']}.0")
        for name in ("requests", "tokens", "concurrency")
        if name in limits
    ]
    for each in limits.get("budget", ()):
        labels = f'{{{label},limit="{each["unit"]} per {each["per"]}"}}'
        lines.append((labels, repr(float(each["limit"])), repr(float(each["remaining"]))))
    return lines
