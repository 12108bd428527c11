"""``--check-providers``: asks each provider for its list of models, and reports which steps can work.

With ``--try`` it also sends a real request to each step. Each question depends on the last answer, so these functions
are coroutines.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure

from aigw.commands.check_answers import apply_list, asked_of, has_list, models_in
from aigw.commands.check_report import Checked, CheckedStep, as_json, as_text
from aigw.config.model import Config, Provider, Step
from aigw.credentials.changing_keys import ChangingKeys
from aigw.credentials.source import NoKey
from aigw.errors import UpstreamBroken, UpstreamFailure, UpstreamRefused, UpstreamTimeout
from aigw.net.headers import Lines
from aigw.net.interfaces import Reactor
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.refusals import read_refusal
from aigw.protocols.requests import own_request
from aigw.routing.keyed_upstream import Sender, with_keys
from aigw.routing.router import MODELS, Router
from aigw.settings.addresses import neighbours, socket_of
from aigw.settings.patterns import STAR
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

_HI = [{"role": "user", "content": "Hi"}]
_OTHERS: dict[str, tuple[Mapping[str, object], str]] = {  # what is sent, and the member of the answer that has a list
    "embeddings": ({"input": "Hi"}, "data"),
    "messages": ({"messages": _HI, "max_tokens": 1}, "content"),
    "responses": ({"input": "Hi", "max_output_tokens": 16}, "output"),
    "completions": ({"prompt": "Hi", "max_tokens": 1}, "choices"),
}
_VERSION = {b"anthropic-version": b"Anthropic-Version: 2023-06-01\r\n"}  # Anthropic refuses a request without one

_REPLACE = {
    "key_file": "replace the key in its key_file",
    "key_command": "its key_command must print another one",
}  # what an operator can do about a refused key

# By provider, position of the key, and model: whether it works, and why not.
Answers = dict[tuple[str, int, str], "tuple[bool | None, str]"]


class Check:
    """All providers of a configuration, asked at once; the steps of one provider are tried one after the other."""

    def __init__(self, config: Config, upstream: Sender, reactor: Reactor, keys: ChangingKeys | None = None) -> None:
        """``upstream`` sends without the ``keys``, which may change."""
        self._config = config
        self._upstream = upstream
        self._clock = reactor
        self._router = Router(config)
        self._keyed = with_keys(upstream, keys or ChangingKeys(reactor, config), self._router, reactor)

    def run(self, tries: bool = False) -> Deferred[tuple[list[Checked], list[CheckedStep]]]:
        """The results, in the order of the configuration; with a real request to each step if it ``tries``."""
        return Deferred.fromCoroutine(self._run(tries))

    async def _run(self, tries: bool) -> tuple[list[Checked], list[CheckedStep]]:
        providers = self._config.providers.values()
        asked = [(provider, key) for provider in providers for key in range(len(provider.keys))]
        found = await gatherResults([Deferred.fromCoroutine(self._ask(*each)) for each in asked])
        answers: Answers = {}
        if tries:
            usable = {each.provider: each for each in found if each.reachable}.values()
            await gatherResults([Deferred.fromCoroutine(self._try_all(each.provider, answers)) for each in usable])
        by_key = {(provider.name, key): each for (provider, key), each in zip(asked, found, strict=True)}
        return found, list(self._steps(by_key, answers))

    def _limited(self, asking: Coroutine[Deferred[object], object, T], seconds: float) -> Deferred[T]:
        def too_late(*_: object) -> Failure:
            return Failure(UpstreamTimeout("answer", seconds))

        return Deferred.fromCoroutine(asking).addTimeout(seconds, self._clock, too_late)

    # The list of models

    async def _ask(self, provider: Provider, key: int) -> Checked:
        found = Checked(provider.name, key_number=key + 1 if len(provider.keys) > 1 else None)
        started = self._clock.seconds()
        headers = self._headers(provider, key)
        target = self._router.target(provider, MODELS, "")
        no_key: NoKey | None = None
        try:
            try:
                status, found.models = await self._limited(self._list(self._keyed, provider, target, headers), SECONDS)
            except NoKey as error:
                no_key = error
                status, _ = await self._limited(self._list(self._upstream, provider, target, {}), SECONDS)
        except UpstreamFailure as error:
            socket = socket_of(provider.base_url)
            found.problem = f"{error.message} ({socket})" if socket else error.message
            found.reachable = "TLS" in error.message
            found.certificate = False if error.message.startswith(CERTIFICATE_REFUSED) else None
            return found
        found.reachable, found.certificate = True, True if provider.base_url.startswith("https:") else None
        found.latency_ms = round((self._clock.seconds() - started) * 1000)
        if no_key is not None:
            found.key = False
            found.problem = self._shown(": ".join(filter(None, [no_key.message, no_key.reason])))
        elif status == 401:
            setting = f"api_keys[{key}]" if provider.api_keys else "api_key"
            advice = _REPLACE.get(provider.key_setting or "", f"set {setting} to a valid one")
            found.key, found.problem = False, f"the provider refuses the key (401); {advice}"
        elif status in _UNKNOWN:
            found.note = f"the provider gives no list of models ({status}), so the key and the models cannot be checked"
        elif not 200 <= status < 300:
            found.problem = f"answered {status}"
        else:
            await self._ask_without_key(provider, target, found)
        if found.models is None and found.problem is None and status != 429 and MODELS not in provider.paths:
            await self._ask_neighbours(provider, headers, found)
        return found

    async def _list(
        self, sender: Sender, provider: Provider, target: tuple[str, bytes], headers: Lines
    ) -> tuple[int, frozenset[str] | None]:
        """The status of the answer, and the models in it if it is a list of some."""
        url, tail = target
        response = await sender.get(provider, url, headers, CONNECT_SECONDS, tail)
        data, whole = await body.read(response, MAX_LIST, SECONDS, self._clock)
        return response.code, models_in(data) if whole and 200 <= response.code < 300 else None

    async def _ask_without_key(self, provider: Provider, target: tuple[str, bytes], found: Checked) -> None:
        """Ask again without the key: a list that needs no key does not show whether the key is valid."""
        if found.models is None:
            found.note = "its list of models does not have the format of OpenAI"
        if provider.key_setting is None:
            found.key_needed = False
            return
        try:
            status, _ = await self._limited(self._list(self._upstream, provider, target, {}), SECONDS)
        except UpstreamFailure:
            status = 0
        found.key = True if status in (401, 403) else None
        if found.key is None:
            found.note = found.note or "the provider lists its models without a key, so the key cannot be checked"

    async def _ask_neighbours(self, provider: Provider, headers: Lines, found: Checked) -> None:
        """Look for the API beside ``base_url``, on the same host."""
        _, query = self._router.target(provider, MODELS, "")
        for url in neighbours(provider.base_url):
            target = f"{url}/models", query
            try:
                status, models = await self._limited(self._list(self._keyed, provider, target, headers), SECONDS)
            except UpstreamFailure:
                return
            if models is not None or status == 401:
                found.note = self._shown(f"{found.note}; did you mean base_url: {url}")
                return

    # A real request to each step

    async def _try_all(self, provider: str, answers: Answers) -> None:
        for route in self._config.routes.values():
            for step, model in asked_of(route):
                key = provider, step.key, model
                if step.provider.name == provider and STAR not in model and key not in answers:
                    answers[key] = await self._try(step, model)

    async def _try(self, step: Step, model: str) -> tuple[bool | None, str]:
        """Whether the step answers, and a note. A further request after a refusal costs no token."""
        serves = step.provider.serves
        if not serves("chat/completions"):
            return await self._try_without_chat(step, model)
        chat = {"model": model, "messages": _HI}
        failure = await self._request(step, "chat/completions", {**chat, "max_tokens": 1}, "choices")
        reason = (failure.detail or "") if failure else ""
        if failure and "max_completion_tokens" in reason:  # OpenAI's reasoning models refuse max_tokens
            failure = await self._request(step, "chat/completions", {**chat, "max_completion_tokens": 1}, "choices")
            reason = (failure.detail or "") if failure else ""
        if failure is None or "output limit was reached" in reason:  # the one token was reasoning
            return True, ""
        if isinstance(failure, UpstreamRefused) and failure.status in _NOT_THIS_ENDPOINT:
            for path in ("embeddings", "messages"):
                content, member = _OTHERS[path]
                if serves(path) and await self._request(step, path, {"model": model, **content}, member) is None:
                    return True, f"answers {path} requests, but not chat requests"
        return self._why_not(failure)

    async def _try_without_chat(self, step: Step, model: str) -> tuple[bool | None, str]:
        """The same for a provider whose ``endpoints`` have no chat completions: one of the others."""
        failure: UpstreamFailure | None = None
        for path, (content, member) in _OTHERS.items():
            if step.provider.serves(path):
                failure = await self._request(step, path, {"model": model, **content}, member)
                if failure is None:
                    return True, f"answers {path} requests"
                if not isinstance(failure, UpstreamRefused) or failure.status not in _NOT_THIS_ENDPOINT:
                    break
        if failure is None:
            return None, "--try has no request for the endpoints of this provider"
        return self._why_not(failure)

    def _why_not(self, failure: UpstreamFailure) -> tuple[bool | None, str]:
        text = f"{failure.message}: {failure.detail}" if failure.detail else failure.message
        return (None if failure.status in _BUSY else False), self._shown(text)

    def _headers(self, provider: Provider, key: int) -> Lines:
        own = self._router.own_headers(provider, key)
        return {**_VERSION, **own} if provider.auth == "x-api-key" else own

    async def _request(
        self, step: Step, path: str, content: Mapping[str, object], member: str
    ) -> UpstreamFailure | None:
        """Why there was no answer, which has a list ``member``; None where there was one."""
        headers = {**self._headers(step.provider, step.key), b"content-type": b"Content-Type: application/json\r\n"}
        url, tail = self._router.target(step.provider, path, str(content["model"]))
        attempt = Attempt(step, url, headers, own_request(ENDPOINTS[path], content, step.changes), tail=tail)
        seconds = min(step.timeout, TRY_SECONDS)

        async def answered() -> None:
            data, whole = await body.read(await self._keyed.send(attempt), MAX_LIST, seconds, self._clock)
            if not whole:
                raise UpstreamBroken("the answer is incomplete")
            if not has_list(data, member):
                raise UpstreamBroken("answered 2xx without a result", detail=read_refusal(data).reason)

        try:
            await self._limited(answered(), seconds)
        except UpstreamFailure as failure:
            return failure
        return None

    def _shown(self, text: str) -> str:
        """A provider's text for a terminal: bounded, without keys, without control characters."""
        printable = "".join(letter if letter.isprintable() else " " for letter in text[:4096])
        return self._router.keys.hide_any_form(printable)[:300]

    # What follows for the steps

    def _steps(self, found: dict[tuple[str, int], Checked], answers: Answers) -> Iterator[CheckedStep]:
        for route in self._config.routes.values():
            for step, model in asked_of(route):
                name = step.provider.name
                result = CheckedStep(route.name, step.number, name, model, key_number=step.key_number)
                apply_list(result, found[name, step.key])
                if (name, step.key, model) in answers:
                    result.tried = True
                    result.works, words = answers[name, step.key, model]
                    result.problem, result.note = (words, None) if result.works is False else (None, words or None)
                yield result


def check(
    config: Config,
    upstream: Upstream,
    keys: ChangingKeys,
    reactor: Reactor,
    write: Callable[[str], object],
    json: bool,
    tries: bool,
) -> bool:
    """Ask, print, and give whether every step works. Runs the reactor, which can run only once in a process."""
    works: list[bool] = []

    def report(result: tuple[list[Checked], list[CheckedStep]]) -> None:
        write(as_json(*result) if json else as_text(*result))
        works.append(all(step.works for step in result[1]))

    def ask() -> None:
        checking: Deferred[None] = Check(config, upstream, reactor, keys).run(tries).addCallback(report)
        checking.addErrback(lambda failure: write(failure.getErrorMessage()))
        checking.addBoth(lambda _: upstream.close()).addBoth(lambda _: keys.close())
        checking.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(ask)
    reactor.run()
    return works == [True]
