"""What ``--check-config`` prints: listeners, providers, keys with their limits, routes with their steps; no secret."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from itertools import groupby

from aigw.config import proxies
from aigw.config.model import Config, Provider, Route, Step
from aigw.secret import KeySearch, Secret
from aigw.server.listeners import configured_listeners
from aigw.settings.callers import ADMIN, PICO, Account


def described(config: Config, warnings: Iterable[str]) -> str:
    """A line for each warning, listener, provider, route, step and target."""
    lines = [f"warning: {warning}" for warning in warnings]
    for listener in configured_listeners(config):
        kind = "for administrators" if listener.admin else "plain http" if listener.insecure else "https"
        lines.append(f"listen {listener.endpoint} ({kind})")
    lines += [
        f"provider {each.name}: {each.base_url} ({', '.join(_facts(each))})" for each in config.providers.values()
    ]
    lines += _of_keys(config)
    for route in config.routes.values():
        lines += _of_route(route)
    keys = KeySearch(config.secrets)
    return "\n".join([*map(keys.hide_any_form, lines), "The configuration is good."])


def _facts(provider: Provider) -> Iterator[str]:
    """How the gateway calls a provider."""
    yield from _keys(provider)
    if provider.headers:
        yield f"headers {' '.join(provider.headers)}"
    if provider.query:
        yield f"query {' '.join(provider.query)}"
    if provider.endpoints:
        yield f"only for {' '.join(sorted(provider.endpoints))}"
    if provider.paths:
        yield f"paths of its own for {' '.join(provider.paths)}"
    if provider.ask_usage:
        yield "streams are asked for their usage"
    yield f"proxy {proxies.described(provider.proxy)}"
    if provider.ca_file:
        yield f"CA {provider.ca_file}"
    if provider.client_cert:
        yield f"client certificate {provider.client_cert}"
    if provider.legacy_tls:
        yield "legacy TLS"


def _keys(provider: Provider) -> Iterator[str]:
    """Where its keys come from, and how they are sent."""
    keys = [key for key in provider.keys if key]
    if provider.key_file:
        yield f"key from the file {provider.key_file}"
    elif provider.key_command:
        yield f"key from the command {provider.key_command[0]}"  # its arguments may be secret
    elif provider.api_keys:
        yield ", ".join([f"key {number} {_source(key)}" for number, key in enumerate(keys, 1)])
        yield f"balance {provider.balance}"
    elif keys:
        yield f"key {_source(keys[0])}"
    else:
        yield "no key"
    if provider.key_setting and provider.key_header:
        yield f"sent as {'Authorization: Bearer' if provider.auth == 'bearer' else provider.key_header}"


def _source(key: Secret) -> str:
    """Where a key comes from."""
    return f"from {' '.join(f'${{{name}}}' for name in key.variables)}" if key.variables else "in the file"


def _of_keys(config: Config) -> Iterator[str]:
    """The callers with their limits, the groups, and the key of the pages."""
    accounts = {each.name: each for caller in config.callers for each in caller.accounts}
    for caller in config.callers:
        facts = [f"api_key {_source(caller.key)}"] if caller.key is not None else []
        facts += [f"routes {' '.join(caller.routes)}"] if caller.routes else ["all routes"]
        own = accounts.get(f"key {caller.name}")
        facts += _limits(own) if own is not None else []
        facts += [f"wait {caller.wait:g}s"] if caller.wait else []
        facts += [f"assume {caller.assume}"] if own is not None or caller.group else []
        facts += [f"group {caller.group}"] if caller.group else []
        facts += [f"tags {' '.join(caller.tags)}"] if caller.tags else []
        yield f"key {caller.name}: {', '.join(facts)}"
        for proof in caller.proofs:
            end = (
                "no end"
                if proof.until is None
                else f"until {datetime.fromtimestamp(proof.until, timezone.utc):%Y-%m-%d %H:%M} UTC"
            )
            yield f"  {proof.source} ({'disabled' if proof.disabled else end})"
    if config.admin_key is not None:
        yield f"key {ADMIN}: admin_key {_source(config.admin_key)}, opens the pages and sends no request"
    for name, account in accounts.items():
        if name.startswith("group "):
            yield f"{name}: {', '.join(_limits(account))}"


def _limits(account: Account) -> Iterator[str]:
    """In the words of the settings."""
    for name, rate in (("requests", account.requests), ("tokens", account.tokens)):
        if rate is not None:
            yield f"{name} {rate.limit}/{_UNITS[rate.seconds]}"
    if account.concurrency is not None:
        yield f"concurrency {account.concurrency}"
    for each in account.budgets:
        amount = f"{each.limit / PICO:g} USD" if each.in_usd else f"{each.limit} tokens"
        yield f"budget {amount} per {each.per} ({each.zone})"


_UNITS = {1.0: "s", 60.0: "m", 3600.0: "h", 86400.0: "d"}


def _of_route(route: Route) -> Iterator[str]:
    more = [f"also {', '.join(route.also)}"] if route.also else []
    more += [f"deadline {route.deadline:g}s"] if route.deadline else []
    more += ["held until whole"] if route.hold == "whole" else []
    more += [f"keep-alive each {route.keepalive.every:g}s"] if route.keepalive else []
    more += [f"hedge after {route.hedge.after:g}s"] if route.hedge else []
    yield f"route {route.name}" + (f" ({', '.join(more)})" if more else "")
    for _, several in groupby(route.steps, key=lambda step: step.number):
        yield from _of_step(list(several))


def _of_step(steps: list[Step]) -> Iterator[str]:
    """One step, with each of its targets; ``steps`` has one for each target and key."""
    step = steps[0]
    facts = [f"timeout {step.timeout:g}s", f"connect {step.connect_timeout:g}s", f"idle {step.idle_timeout:g}s"]
    facts += [f"on conflict keep {step.conflict_resolution}"] if step.conflict_resolution else []
    facts += [f"for bodies up to {step.max_body} bytes"] if step.max_body else []
    for setting in ("remove", "rename", "default", "set"):
        names = getattr(step, setting)
        facts += [f"{setting} {' '.join(names)}"] if names else []
    limits = f"({', '.join(facts)})"
    if not step.target:
        yield f"  {step.number}. {_target(step)} {limits}"
        return
    yield f"  {step.number}. {step.balance} over targets {limits}"
    for number, each in {each.target: each for each in steps}.items():
        yield f"     target {number}: {_target(each)}, weight {each.weight:g}"


def _target(step: Step) -> str:
    keys = len(step.provider.keys)
    return f"{step.provider.name}: {step.model}" + (f", {keys} keys ({step.provider.balance})" if keys > 1 else "")
