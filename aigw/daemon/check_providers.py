"""``--check-providers``: asks each provider for its list of models, and says which steps can work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.iweb import IResponse

from aigw.config.model import Config, Provider
from aigw.errors import KEY_REFUSED, UpstreamFailure, UpstreamTimeout, UpstreamUnreachable
from aigw.proxy.router import Router
from aigw.upstream.providers import Upstream, within

SECONDS = 20.0
CONNECT_SECONDS = 10.0
MAX_LIST = 8 * 1024 * 1024
_NO_LIST = frozenset([404, 405, 429, 501])  # says nothing on whether a step works


class Checked(msgspec.Struct):
    """One provider. ``certificate`` and ``key`` are True, False, or None where there is none or nobody can say.

    ``problem`` is why no step of it can work; ``note`` what else is to be known. ``models`` is None without a list.
    """

    provider: str
    reachable: bool = False
    certificate: bool | None = None
    key: bool | None = None
    latency_ms: int | None = None
    problem: str | None = None
    note: str | None = None
    models: frozenset[str] | None = None


class CheckedStep(msgspec.Struct):
    """One step; ``listed`` is None where the provider gives no list."""

    route: str
    step: int
    provider: str
    model: str
    works: bool
    listed: bool | None
    problem: str | None


class Check:
    """All providers of a configuration, asked at once."""

    def __init__(self, config: Config, upstream: Upstream, clock: Any) -> None:
        self._config = config
        self._upstream = upstream
        self._clock = clock
        self._router = Router(config)

    def run(self) -> Deferred[tuple[list[Checked], list[CheckedStep]]]:
        """What came of it, in the order of the configuration. Never fails."""
        asked = gatherResults([self._ask(provider) for provider in self._config.providers.values()])
        return asked.addCallback(lambda found: (found, list(self._steps({each.provider: each for each in found}))))

    def _ask(self, provider: Provider) -> Deferred[Checked]:
        found = Checked(provider.name)
        secure = provider.base_url.startswith("https:")
        started = self._clock.seconds()
        asked_again = False

        def answered(response: IResponse) -> Deferred[Any]:
            found.reachable, found.certificate = True, True if secure else None
            found.latency_ms = round((self._clock.seconds() - started) * 1000)
            if response.code in KEY_REFUSED:
                found.key, found.problem = False, f"the key is refused ({response.code})"
            elif not 200 <= response.code < 300 and response.code not in _NO_LIST:
                found.problem = f"answered {response.code}"
            elif response.code in _NO_LIST:
                found.note = f"gives no list of models ({response.code}), so neither key nor models are known"
            else:
                return _List.read(response).addCallback(listed)
            return _List.read(response)

        def listed(body: bytes) -> Any:
            found.models = _names(body)
            if found.models is None:
                found.note = "its list of models is not in OpenAI's shape"
            if provider.api_key is None:
                return None
            nonlocal asked_again
            asked_again = True  # what comes of that says nothing of whether the steps work
            return self._upstream.get(provider, "models", (), CONNECT_SECONDS).addCallback(without_key)

        def without_key(response: IResponse) -> Deferred[bytes]:
            found.key = True if response.code in KEY_REFUSED else None
            if found.key is None:
                found.note = found.note or "lists its models without a key too, so nothing is known of the key"
            return _List.read(response)

        def failed(failure: Failure) -> None:
            error = failure.value
            if asked_again:
                return
            if found.latency_ms is None:
                tls = isinstance(error, UpstreamUnreachable) and error.message.startswith("TLS")
                found.reachable, found.certificate = tls, False if tls else None
            found.problem = error.message if isinstance(error, UpstreamFailure) else type(error).__name__

        headers = self._router.own_headers(provider)
        asked: Deferred[Any] = self._upstream.get(provider, "models", headers, CONNECT_SECONDS).addCallback(answered)
        within(asked, SECONDS, self._clock, lambda: UpstreamTimeout("answer", SECONDS))
        return asked.addErrback(failed).addCallback(lambda _: found)

    def _steps(self, found: dict[str, Checked]) -> Iterable[CheckedStep]:
        for route in self._config.routes.values():
            for step in route.steps:
                provider = found[step.provider.name]
                listed = None if provider.models is None else _is_listed(step.model, provider.models)
                problem = provider.problem or ("the model is not listed" if listed is False else None)
                yield CheckedStep(
                    route.name, step.number, step.provider.name, step.model, problem is None, listed, problem
                )


class _List(Protocol):
    """A body, up to MAX_LIST bytes; what is larger, or cut short, is an empty one."""

    transport: Any

    def __init__(self) -> None:
        self._data = bytearray()
        self.done: Deferred[bytes] = Deferred(lambda _: self.transport.stopProducing())

    @classmethod
    def read(cls, response: IResponse) -> Deferred[bytes]:
        reader = cls()
        response.deliverBody(reader)
        return reader.done

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        if len(self._data) > MAX_LIST:
            self._data.clear()
            self.transport.stopProducing()
            self.connectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.done.called:
            self.done.callback(bytes(self._data))


def _names(body: bytes) -> frozenset[str] | None:
    """The ids in OpenAI's list; some providers write them as ``models/NAME``."""
    try:
        said = msgspec.json.decode(body)
        entries = said["data"] if isinstance(said, dict) else said
        ids = [entry["id"] for entry in entries]
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return frozenset(each.removeprefix("models/") for each in ids if isinstance(each, str))


def _is_listed(model: str, listed: frozenset[str]) -> bool:
    return model in listed or f"{model}:latest" in listed


def told(checked: Sequence[Checked], steps: Sequence[CheckedStep]) -> str:
    """Two tables, for people."""
    words = {True: "yes", False: "no", None: "-"}
    providers = [["provider", "reachable", "certificate", "key", "latency", ""]]
    for each in checked:
        latency = "-" if each.latency_ms is None else f"{each.latency_ms} ms"
        verdicts = [words[each.reachable], words[each.certificate], words[each.key]]
        providers.append([each.provider, *verdicts, latency, each.problem or each.note or ""])
    rows = [["route", "step", "provider", "model", "listed", "works", ""]]
    for step in steps:
        works = [words[step.listed], words[step.works], step.problem or ""]
        rows.append([step.route, str(step.step), step.provider, step.model, *works])
    good = sum(step.works for step in steps)
    return f"{_table(providers)}\n\n{_table(rows)}\n\n{good} of {len(steps)} steps can work."


def as_json(checked: Sequence[Checked], steps: Sequence[CheckedStep]) -> str:
    """The same, for machines; of a provider's models only how many there are."""
    providers = []
    for each in checked:
        shown = msgspec.structs.asdict(each)
        providers.append({**shown, "models": None if each.models is None else len(each.models)})
    shape = {"works": all(step.works for step in steps), "providers": providers, "steps": steps}
    return msgspec.json.format(msgspec.json.encode(shape), indent=2).decode()


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def check(config: Config, upstream: Upstream, reactor: Any, json: bool, say: Callable[[str], object]) -> bool:
    """Ask, print, and give whether every step can work. Runs the reactor, which runs only once in a process."""
    works: list[bool] = []

    def report(result: tuple[list[Checked], list[CheckedStep]]) -> None:
        say(as_json(*result) if json else told(*result))
        works.append(all(step.works for step in result[1]))

    def ask() -> None:
        checking: Deferred[Any] = Check(config, upstream, reactor).run().addCallback(report)
        checking.addErrback(lambda failure: say(failure.getErrorMessage()))
        checking.addBoth(lambda _: upstream.close()).addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(ask)
    reactor.run()
    return works == [True]
