"""``--check-providers``: asks each provider for its list of models, and reports which steps can work.

With ``--try`` it also sends a real request to each step. Each question depends on the last answer, so these functions
are coroutines.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TypeVar

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from aigw.config.model import Config, Provider, Route, Step
from aigw.config.patterns import STAR
from aigw.daemon.check_report import Checked, CheckedStep, as_json, as_text
from aigw.errors import UpstreamBroken, UpstreamFailure, UpstreamRefused, UpstreamTimeout
from aigw.net.headers import Lines
from aigw.net.interfaces import Reactor
from aigw.protocols.refusals import read_refusal
from aigw.proxy.route_names import sent_models
from aigw.proxy.router import Router
from aigw.secret import KeySearch
from aigw.upstream import body
from aigw.upstream.attempt import Attempt
from aigw.upstream.providers import Upstream
from aigw.upstream.reasons import CERTIFICATE_REFUSED

T = TypeVar("T")

SECONDS = 20.0
CONNECT_SECONDS = 10.0
TRY_SECONDS = 60.0  # a local server may have to load the model first
MAX_LIST = 8 * 1024 * 1024
_UNKNOWN = frozenset([403, 404, 405, 429, 501])  # does not show whether a step works
_BUSY = frozenset([408, 425, 429, 503, 529])  # does not show whether a step works either, after a real request
_NOT_THIS_ENDPOINT = frozenset([400, 404, 405, 422, 501])  # for example a model for embeddings

_VERSION = {b"anthropic-version": b"Anthropic-Version: 2023-06-01\r\n"}  # Anthropic refuses a request without one

Answers = dict[tuple[str, str], "tuple[bool | None, str]"]  # by provider and model: whether it works, and why not


class Check:
    """All providers of a configuration, asked at once; the steps of one provider are tried one after the other."""

    def __init__(self, config: Config, upstream: Upstream, clock: IReactorTime) -> None:
        self._config = config
        self._upstream = upstream
        self._clock = clock
        self._router = Router(config)
        self._keys = KeySearch(config.secrets)

    def run(self, tries: bool = False) -> Deferred[tuple[list[Checked], list[CheckedStep]]]:
        """The results, in the order of the configuration; with a real request to each step if it ``tries``."""
        return Deferred.fromCoroutine(self._run(tries))

    async def _run(self, tries: bool) -> tuple[list[Checked], list[CheckedStep]]:
        providers = self._config.providers.values()
        found = await gatherResults([Deferred.fromCoroutine(self._ask(provider)) for provider in providers])
        answers: Answers = {}
        if tries:
            usable = [provider for provider in found if provider.reachable]
            await gatherResults([Deferred.fromCoroutine(self._try_all(each.provider, answers)) for each in usable])
        return found, list(self._steps({each.provider: each for each in found}, answers))

    def _limited(self, asking: Coroutine[Deferred[object], object, T], seconds: float) -> Deferred[T]:
        def too_late(*_: object) -> Failure:
            return Failure(UpstreamTimeout("answer", seconds))

        return Deferred.fromCoroutine(asking).addTimeout(seconds, self._clock, too_late)

    # The list of models

    async def _ask(self, provider: Provider) -> Checked:
        found = Checked(provider.name)
        started = self._clock.seconds()
        headers = self._headers(provider)
        url = f"{provider.base_url}/models"
        try:
            status, found.models = await self._limited(self._list(provider, url, headers), SECONDS)
        except UpstreamFailure as error:
            found.problem = error.message
            found.reachable = "TLS" in error.message
            found.certificate = False if error.message.startswith(CERTIFICATE_REFUSED) else None
            return found
        found.reachable, found.certificate = True, True if provider.base_url.startswith("https:") else None
        found.latency_ms = round((self._clock.seconds() - started) * 1000)
        if status == 401:
            found.key, found.problem = False, "the provider refuses the key (401); set api_key to a valid one"
        elif status in _UNKNOWN:
            found.note = f"the provider gives no list of models ({status}), so the key and the models cannot be checked"
        elif not 200 <= status < 300:
            found.problem = f"answered {status}"
        else:
            await self._ask_without_key(provider, url, found)
        if found.models is None and found.problem is None and status != 429:
            await self._ask_neighbours(provider, headers, found)
        return found

    async def _list(self, provider: Provider, url: str, headers: Lines) -> tuple[int, frozenset[str] | None]:
        """The status of the answer, and the models in it if it is a list of some."""
        response = await self._upstream.get(provider, url, headers, CONNECT_SECONDS)
        data, whole = await body.read(response, MAX_LIST, SECONDS, self._clock)
        return response.code, _names(data) if whole and 200 <= response.code < 300 else None

    async def _ask_without_key(self, provider: Provider, url: str, found: Checked) -> None:
        """Ask again without the key: a list that needs no key does not show whether the key is valid."""
        if found.models is None:
            found.note = "its list of models does not have the format of OpenAI"
        if provider.api_key is None:
            found.key_needed = False
            return
        try:
            status, _ = await self._limited(self._list(provider, url, {}), SECONDS)
        except UpstreamFailure:
            status = 0
        found.key = True if status in (401, 403) else None
        if found.key is None:
            found.note = found.note or "the provider lists its models without a key, so the key cannot be checked"

    async def _ask_neighbours(self, provider: Provider, headers: Lines, found: Checked) -> None:
        """Look for the API beside ``base_url``, on the same host."""
        for url in neighbours(provider.base_url):
            try:
                status, models = await self._limited(self._list(provider, f"{url}/models", headers), SECONDS)
            except UpstreamFailure:
                return
            if models is not None or status == 401:
                found.note = self._shown(f"{found.note}; did you mean base_url: {url}")
                return

    # A real request to each step

    async def _try_all(self, provider: str, answers: Answers) -> None:
        for route in self._config.routes.values():
            for step, model in _asked_of(route):
                if step.provider.name == provider and STAR not in model and (provider, model) not in answers:
                    answers[provider, model] = await self._try(step, model)

    async def _try(self, step: Step, model: str) -> tuple[bool | None, str]:
        """Whether the step answers, and a note. A further request after a refusal costs no token."""
        chat = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        failure = await self._request(step, "chat/completions", {**chat, "max_tokens": 1}, "choices")
        reason = (failure.detail or "") if failure else ""
        if failure and "max_completion_tokens" in reason:  # OpenAI's reasoning models refuse max_tokens
            failure = await self._request(step, "chat/completions", {**chat, "max_completion_tokens": 1}, "choices")
            reason = (failure.detail or "") if failure else ""
            if failure and "output limit was reached" in reason:
                return True, ""  # the one token was reasoning
        if failure is None:
            return True, ""
        if isinstance(failure, UpstreamRefused) and failure.status in _NOT_THIS_ENDPOINT:
            embedding = {"model": model, "input": "Hi"}
            if await self._request(step, "embeddings", embedding, "data") is None:
                return True, "answers embeddings requests, but not chat requests"
            if await self._request(step, "messages", {**chat, "max_tokens": 1}, "content") is None:
                return True, "answers messages requests, but not chat requests"
        why = self._shown(f"{failure.message}: {reason}" if reason else failure.message)
        return (None if failure.status in _BUSY else False), why

    def _headers(self, provider: Provider) -> Lines:
        own = self._router.own_headers(provider)
        return {**_VERSION, **own} if provider.auth == "x-api-key" else own

    async def _request(
        self, step: Step, path: str, content: Mapping[str, object], member: str
    ) -> UpstreamFailure | None:
        """Why there was no answer, which has a list ``member``; None where there was one."""
        headers = {**self._headers(step.provider), b"content-type": b"Content-Type: application/json\r\n"}
        attempt = Attempt(step, f"{step.provider.base_url}/{path}", headers, msgspec.json.encode(content))
        seconds = min(step.timeout, TRY_SECONDS)

        async def answered() -> None:
            data, whole = await body.read(await self._upstream.send(attempt), MAX_LIST, seconds, self._clock)
            if not whole:
                raise UpstreamBroken("the answer is incomplete")
            if not _has_list(data, member):
                raise UpstreamBroken("answered 2xx without a result", detail=read_refusal(data).reason)

        try:
            await self._limited(answered(), seconds)
        except UpstreamFailure as failure:
            return failure
        return None

    def _shown(self, text: str) -> str:
        """A provider's text for a terminal: bounded, without keys, without control characters."""
        printable = "".join(letter if letter.isprintable() else " " for letter in text[:4096])
        return self._keys.hide_any_form(printable)[:300]

    # What follows for the steps

    def _steps(self, found: dict[str, Checked], answers: Answers) -> Iterator[CheckedStep]:
        for route in self._config.routes.values():
            for step, model in _asked_of(route):
                name = step.provider.name
                result = CheckedStep(route.name, step.number, name, model)
                _apply_list(result, found[name])
                if (name, model) in answers:
                    result.tried = True
                    result.works, words = answers[name, model]
                    result.problem, result.note = (words, None) if result.works is False else (None, words or None)
                yield result


def _asked_of(route: Route) -> Iterator[tuple[Step, str]]:
    """Each step with each model that it is known to send; with its own, which has a star, if none is known."""
    for step in route.steps:
        for model in sent_models(route, step) or [step.model]:
            yield step, model


def _apply_list(step: CheckedStep, provider: Checked) -> None:
    if STAR in step.model:
        step.works, step.problem = (False if provider.problem else None), provider.problem
        step.note = None if provider.problem else "clients choose the model; name some in models of the route"
        return
    if provider.models is not None:
        step.listed = step.model in provider.models or f"{step.model}:latest" in provider.models
    if provider.problem or step.listed is False:
        step.works, step.problem = False, provider.problem or "the provider does not list the model; correct model"
    elif step.listed and (provider.key or not provider.key_needed):
        step.works = True
    else:
        step.note = provider.note


def neighbours(base_url: str) -> list[str]:
    """Other URLs on the same host where the API may be, the most likely first."""
    url = base_url.rstrip("/")
    found = [url.removesuffix("/models")] if url.endswith("/models") else []
    if url.endswith("/v1"):
        found.append(url.removesuffix("/v1"))
    else:
        found.append(f"{found[0] if found else url}/v1")
    origin = "/".join(url.split("/", 3)[:3])
    found += [f"{origin}/{path}" for path in ("v1", "api/v1", "openai/v1")]
    return [each for each in dict.fromkeys(found) if each not in (url, base_url)]


def _names(data: bytes) -> frozenset[str] | None:
    """The ids in OpenAI's list; some providers write them as ``models/NAME``."""
    try:
        read = msgspec.json.decode(data)
        entries = read["data"] if isinstance(read, dict) else read
        ids = [entry["id"] for entry in entries]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return frozenset(each.removeprefix("models/") for each in ids if isinstance(each, str))


def _has_list(data: bytes, member: str) -> bool:
    try:
        read = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(read, dict) and isinstance(read.get(member), list) and bool(read[member])


def check(
    config: Config, upstream: Upstream, reactor: Reactor, write: Callable[[str], object], json: bool, tries: bool
) -> bool:
    """Ask, print, and give whether every step works. Runs the reactor, which can run only once in a process."""
    works: list[bool] = []

    def report(result: tuple[list[Checked], list[CheckedStep]]) -> None:
        write(as_json(*result) if json else as_text(*result))
        works.append(all(step.works for step in result[1]))

    def ask() -> None:
        checking: Deferred[None] = Check(config, upstream, reactor).run(tries).addCallback(report)
        checking.addErrback(lambda failure: write(failure.getErrorMessage()))
        checking.addBoth(lambda _: upstream.close()).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(ask)
    reactor.run()
    return works == [True]
