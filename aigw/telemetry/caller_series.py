"""The metrics of callers, and of their limits: as many series as the configuration has keys and groups.

They are made in a thread, as all others of ``series`` are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

from aigw.settings.callers import Account
from aigw.telemetry.counters import CallerCounters, Counters
from aigw.telemetry.snapshot import Snapshot

Labels = Callable[[str, str], str]


class MetricFamily(NamedTuple):
    """A metric with all its lines; each line is made when the iterator reaches it."""

    name: str
    kind: str
    text: str
    lines: Iterable[str]


def families(counters: Counters, live: Snapshot, labels: Labels, model_labels: Labels) -> Iterator[MetricFamily]:
    """All of them. ``labels`` gives the label of a kind (``caller`` or ``group``) and a name."""
    callers = [(labels("caller", name), each) for name, each in counters.callers.items()]
    accounts = {each.name: each for caller in live.config.callers for each in caller.accounts}
    ends = [(labels("caller", each.name), each.expires) for each in live.config.callers if each.expires is not None]
    yield MetricFamily(
        "aigw_caller_requests",
        "counter",
        "Requests that have ended, by the key of the caller.",
        (f"aigw_caller_requests_total{{{label}}} {each.requests}.0\n" for label, each in callers),
    )
    yield MetricFamily(
        "aigw_caller_requests_refused",
        "counter",
        "Those of them that a limit of the key or of its group refused.",
        (f"aigw_caller_requests_refused_total{{{label}}} {each.refused}.0\n" for label, each in callers),
    )
    yield MetricFamily(
        "aigw_caller_tokens",
        "counter",
        "Tokens that callers used, by disjoint kinds.",
        (_tokens(label, each) for label, each in callers),
    )
    yield MetricFamily(
        "aigw_caller_cost_usd",
        "counter",
        "What the requests of callers cost in USD, as far as it is known.",
        (f"aigw_caller_cost_usd_total{{{label}}} {each.cost:f}\n" for label, each in callers),
    )
    yield MetricFamily(
        "aigw_caller_key_expiry_timestamp_seconds",
        "gauge",
        "When the first of the keys of a caller that have an end expires, in Unix time.",
        (f"aigw_caller_key_expiry_timestamp_seconds{{{label}}} {end!r}\n" for label, end in ends),
    )
    yield MetricFamily(
        "aigw_limit",
        "gauge",
        "The limits of keys and groups.",
        chain.from_iterable(_limits("aigw_limit", "limit", each, live, labels) for each in accounts.values()),
    )
    yield MetricFamily(
        "aigw_limit_remaining",
        "gauge",
        "What is left of them, without what running requests have reserved.",
        chain.from_iterable(
            _limits("aigw_limit_remaining", "remaining", each, live, labels) for each in accounts.values()
        ),
    )
    yield MetricFamily(
        "aigw_unpriced_requests",
        "counter",
        "Charged attempts with an unknown cost: the model has no price, or no usage was reported.",
        (
            f"aigw_unpriced_requests_total{{{model_labels(*key)}}} {n}.0\n"
            for key, n in counters.unpriced.copy().items()
        ),
    )
    yield MetricFamily(
        "aigw_usage_lines_lost",
        "counter",
        "Lines of the file of usage that could not be written.",
        [f"aigw_usage_lines_lost_total {counters.lines_lost}.0\n"],
    )


def _tokens(label: str, caller: CallerCounters) -> str:
    tokens = caller.tokens.copy()
    return "".join([f'aigw_caller_tokens_total{{{label},type="{kind}"}} {n}.0\n' for kind, n in tokens.items()])


def _limits(name: str, member: str, account: Account, live: Snapshot, labels: Labels) -> Iterator[str]:
    """One line for each limit of a key or a group, by the numbers that decide."""
    if live.limits_of is None:
        return
    kind, _, whose = account.name.partition(" ")
    label = labels("caller" if kind == "key" else kind, whose)
    limits: dict[str, Any] = live.limits_of(account)["limits"]
    for limit in ("requests", "tokens", "concurrency"):
        if limit in limits:
            yield f'{name}{{{label},limit="{limit}"}} {limits[limit][member]}.0\n'
    for each in limits.get("budget", ()):
        yield f'{name}{{{label},limit="{each["unit"]} per {each["per"]}"}} {float(each[member])!r}\n'
