"""Warnings about settings that are allowed, but probably not intended."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from urllib.parse import urlsplit

from aigw.config.file_mode import is_secret
from aigw.config.model import Config, Provider, Route, Step
from aigw.secret import Secret
from aigw.settings.addresses import is_private_host
from aigw.settings.callers import NamedKey, advice_on_keys
from aigw.settings.mistakes import Mistake, Path
from aigw.settings.quoting import quoted

SHORT_KEY = 8
GUESSED_KEY = 20


def advice_on(config: Config) -> Iterator[Mistake]:
    """Warnings by the path of the setting."""
    for caller in config.callers:
        if caller.key is not None:
            yield from _on_key(caller.key, ("api_key",))
    if config.admin_key is not None:
        yield from _on_key(config.admin_key, ("admin_key",))
    yield from advice_on_named_keys(config.keys, config.routes)
    if "*" in config.cors_origins:
        text = "is '*': the pages of all sites may call the gateway with a key; name the sites that have one"
        yield Mistake(text, ("cors", "origins"))
    used = {step.provider.name for route in config.routes.values() for step in route.steps}
    for index, provider in enumerate(config.providers.values()):
        yield from _on_provider(provider, provider.name in used, index)
    for index, route in enumerate(config.routes.values()):
        yield from _on_route(route, index)


def advice_on_instances(config: Config, environ: Mapping[str, str]) -> Iterator[Mistake]:
    """The same on a configuration with its callers, where systemd's template sets the variable of an instance."""
    if environ.get("AIGW_INSTANCE") and config.store is None and any(caller.accounts for caller in config.callers):
        text = "is missing, so each instance counts limits alone, and a key can use its limits once in each; "
        yield Mistake(f"{text}write store, or run one instance", ("store",))


def advice_on_named_keys(keys: Iterable[NamedKey], routes: Collection[str]) -> Iterator[Mistake]:
    """The same on the keys of one file."""
    keys = tuple(keys)
    for index, each in enumerate(keys):
        if each.key is not None:
            yield from _on_key(each.key, ("keys", index, "key"))
    yield from advice_on_keys(keys, routes)


def _on_key(key: Secret, path: Path) -> Iterator[Mistake]:
    if len(key) < GUESSED_KEY:
        text = f"has fewer than {GUESSED_KEY} characters and is easy to guess; use a longer key (openssl rand -hex 32)"
        yield Mistake(text, path)
    if len(key) < SHORT_KEY:
        yield Mistake(_SHORT, path)


_SHORT = (
    f"has fewer than {SHORT_KEY} characters, so the log shows *** for every text that contains it; use a longer key"
)


def _on_provider(provider: Provider, is_used: bool, index: int) -> Iterator[Mistake]:
    path = ("providers", index)
    for number, each in enumerate(provider.api_keys):
        if len(each) < SHORT_KEY:
            yield Mistake(_SHORT, (*path, "api_keys", number))
    if provider.api_key and len(provider.api_key) < SHORT_KEY:
        yield Mistake(_SHORT, (*path, "api_key"))
    if provider.balance != "sticky" and len(provider.api_keys) < 2:
        yield Mistake("has no effect without several api_keys; add keys, or remove it", (*path, "balance"))
    key = provider.key_setting
    header = next((name for name in provider.headers if name.lower() == provider.key_header), None)
    if key and header:
        text = f"is sent instead of {key}, so {key} has no effect; keep one of the two"
        yield Mistake(text, (*path, "headers", header))
    sent = [*provider.headers.items(), *provider.query.items()]
    sends_key = key or any(is_secret(name, value) for name, value in sent)
    url = urlsplit(provider.base_url)
    if url.scheme == "http" and sends_key and not is_private_host(url.hostname or ""):
        text = "sends a key unencrypted (http://) to a host outside your network; write https://"
        yield Mistake(text, (*path, "base_url"))
    if url.scheme != "https" and provider.client_cert:
        text = "has no effect without TLS; write a base_url with https://, or remove it and client_key"
        yield Mistake(text, (*path, "client_cert"))
    for endpoint in provider.paths:
        if endpoint != "models" and not provider.serves(endpoint):
            text = "has no effect, because the provider's endpoints do not have it; add it there, or remove it"
            yield Mistake(text, (*path, "paths", endpoint))
    if not is_used:
        text = f"no route uses the provider {quoted(provider.name)!r}; name it in a step, or remove it"
        yield Mistake(text, path)


def _on_route(route: Route, index: int) -> Iterator[Mistake]:
    path = ("routes", index)
    first = route.steps[0]
    if route.deadline and route.deadline < first.timeout:
        text = (
            f"is {route.deadline:g}s, which is less than the timeout of the first step ({first.timeout:g}s); "
            "if that step does not answer, no other step is tried"
        )
        yield Mistake(text, (*path, "deadline"))
    if route.hedge is not None and len(route.steps) == 1:
        yield Mistake("has no effect on a route with one step; add a step, or remove it", (*path, "hedge"))
    elif route.hedge is not None and route.hedge.after >= first.timeout:
        text = (
            f"is {route.hedge.after:g}s, and the timeout of the first step is {first.timeout:g}s, so no other step "
            "starts beside it; write a shorter time"
        )
        yield Mistake(text, (*path, "hedge", "after"))
    seen: dict[tuple[object, ...], Step] = {}
    for step in route.steps:
        if step.balance != "sticky" and not step.target:
            text = "has no effect without targets; the balance of a provider's keys is a setting of the provider"
            yield Mistake(text, (*path, "steps", step.number - 1, "balance"))
        if route.endpoints and not any([step.provider.serves(each) for each in route.endpoints]):
            text = "is never tried: its provider serves none of the endpoints of the route; correct one of the two"
            yield Mistake(text, (*path, "steps", step.number - 1))
        same = seen.setdefault((step.provider.name, step.model, step.key, step.changes, step.max_body), step)
        if same is not step:
            text = f"is the same as step {same.number}; remove it, or use retries to repeat that step"
            yield Mistake(text, (*path, "steps", step.number - 1))
