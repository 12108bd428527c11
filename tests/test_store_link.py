"""L18: the connection to the store, and a server that is not what it should be."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest
import trustme
from pytest_twisted import ensureDeferred
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from aigw.secret import Secret
from aigw.settings.store import StoreAddress
from aigw.store import store_link
from aigw.store.store_link import RedisLink, StoreError
from tests.harness import bounded, lines_of_the_log, tls_options, until

FLOOD = b"x" * 60_000


class Redis(Protocol):
    """Answers each command by ``factory.answers``, by its first word; a script is answered ``+7``."""

    def connectionMade(self) -> None:
        self.factory.opened.append(self)
        self.transport.write(self.factory.greeting)

    def connectionLost(self, reason) -> None:
        self.connected = 0

    def dataReceived(self, data: bytes) -> None:
        words = data.split(b"\r\n")
        for count, word in enumerate(words):
            if word.startswith(b"*") and word[1:].isdigit() and count + 2 < len(words):
                self.factory.asked.append(words[count + 2].decode())
                found = self.factory.answers.get(words[count + 2].decode(), b"+7\r\n")
                found(self) if callable(found) else self.transport.write(found)


class Server(Factory):
    protocol = Redis
    noisy = False

    def __init__(self, tls=None, **answers) -> None:
        self.opened, self.asked, self.answers, self.greeting = [], [], answers, b""
        if tls is None:
            self.listening = reactor.listenTCP(0, self, interface="127.0.0.1")
        else:
            self.listening = reactor.listenSSL(0, self, tls, interface="127.0.0.1")
        self.port = self.listening.getHost().port

    def stop(self):
        for each in self.opened:
            if each.connected:
                each.transport.abortConnection()
        return self.listening.stopListening()


def unexpected(lines: list) -> list:
    """Without those of the listeners of this test."""
    return [line for line in lines if "Port" not in line["message"] and "starting on" not in line["message"]]


class Linked:
    """A server and a link to it; nothing may be logged."""

    def __init__(self, server: Server, **more) -> None:
        self.server = server
        hosts = (("127.0.0.1", server.port),)
        self.link = RedisLink(StoreAddress(**{"hosts": hosts, **more}))

    async def __aenter__(self):
        self.log = lines_of_the_log()
        self.lines = self.log.__enter__()
        self.link.start()
        return self

    async def __aexit__(self, *error) -> None:
        self.link.close()
        await self.server.stop()
        await deferLater(reactor, 0)
        gc.collect()  # an error that was not handled is a line then
        self.log.__exit__(*error)
        if error[0] is None:
            assert unexpected(self.lines) == []

    async def run(self) -> str:
        """The answer, or the text of the failure."""
        try:
            return await bounded(self.link.run("return 1", ["k"], ["v"]), 5)
        except Exception as error:
            return str(error)

    async def until_run_gives(self, expected: Callable[[str], bool]) -> None:
        end = time.monotonic() + 8
        while not expected(text := await self.run()):
            assert time.monotonic() < end, text
            await deferLater(reactor, 0.01)

    async def until_answered(self) -> None:
        await self.until_run_gives(lambda text: text == "7")


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(store_link, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(store_link, "LONGEST_PAUSE", 0.05)


def flood(connection: Redis) -> None:
    def more() -> None:
        if connection.connected and len(connection.factory.opened) < 3:
            connection.transport.write(FLOOD)
            reactor.callLater(0, more)

    connection.transport.write(b"$999999999\r\n")
    more()


HOSTILE = {
    "an endless answer": (flood, "too large"),
    "an endless line": (b"+" + FLOOD, "too large"),
    "an endless list": (b"*999999999\r\n" + b"+x\r\n" * 300_000, "too large"),
    "lists in lists": (b"*1\r\n" * 300_000, "too large"),
    "no text": (b"+\xff\xfe\r\n", "no answer of a Valkey"),
    "two answers": (b"+7\r\n+7\r\n+8\r\n", "without a question"),
    "an answer of another protocol": (b"HTTP/1.1 400 Bad Request\r\n\r\n" + FLOOD * 20, "too large"),
    "a list that is none": (b"*x\r\n+7\r\n+7\r\n", "without a question"),
}


@pytest.mark.parametrize("how", HOSTILE)
@ensureDeferred
async def test_l18_a_server_that_sends_anything_is_left_and_tried_again(how):
    sent, reason = HOSTILE[how]
    async with Linked(Server(SCRIPT=b"-NOPERM\r\n", EVAL=sent, EVALSHA=sent)) as linked:
        await until(lambda: linked.link._protocol)
        await linked.run()
        await until(lambda: len(linked.server.opened) > 2 or linked.link._protocol is None)
        assert reason in linked.link._reason
        linked.server.answers.update(EVAL=b"+7\r\n", EVALSHA=b"+7\r\n")
        await linked.until_answered()


@ensureDeferred
async def test_l18_what_a_server_sends_unasked_is_not_kept():
    server = Server()
    server.greeting = b"+7\r\n" * 10_000
    async with Linked(server) as linked:
        await until(lambda: len(server.opened) > 3)
        # A run that was under way when the connection ended has another reason.
        await linked.until_run_gives(lambda text: "without a question" in text)
        server.greeting = b""
        await linked.until_answered()


@ensureDeferred
async def test_l15_an_answer_that_comes_late_is_not_taken_for_another_one(monkeypatch):
    monkeypatch.setattr(store_link, "REPLY_SECONDS", 0.2)
    late = []
    server = Server(SCRIPT=b"-NOPERM\r\n", EVAL=late.append)
    async with Linked(server) as linked:
        await until(lambda: linked.link._protocol)
        first, second = linked.run(), linked.run()
        assert "0.2 seconds" in await first
        assert "0.2 seconds" in await second
        server.answers["EVAL"] = b"+7\r\n"
        late[0].transport.write(b"+late\r\n+late\r\n")
        await linked.until_answered()
        assert len(server.opened) == 2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"-WRONGPASS invalid username-password pair or user is disabled." + b"x" * 9000 + b"\r\n", "WRONGPASS invalid"),
        (b"-NOAUTH\r\n", "NOAUTH"),
        (b"", "there is no connection"),
    ],
    ids=["wrong", "none", "silent"],
)  # fmt: skip
@ensureDeferred
async def test_l18_a_password_that_is_refused_is_a_reason_and_tried_again(monkeypatch, answer, reason):
    monkeypatch.setattr(store_link, "CONNECT_SECONDS", 0.1)
    server = Server(AUTH=answer)
    async with Linked(server, password=Secret("the-password-of-this-store"), user="u", database=3) as linked:
        await until(lambda: len(server.opened) > 2)
        found = await linked.run()
        assert reason in found
        assert len(found) <= 200
        assert "the-password" not in found
        server.answers["AUTH"] = b"+OK\r\n"
        await linked.until_answered()
        assert server.asked[-1] in ("EVAL", "EVALSHA", "SCRIPT")
        assert "SELECT" in server.asked


@ensureDeferred
async def test_l18_a_database_that_is_not_there_is_a_reason():
    server = Server(SELECT=b"-ERR SELECT is not allowed in cluster mode\r\n")
    async with Linked(server, database=3) as linked:
        await until(lambda: len(server.opened) > 1)
        assert "SELECT is not allowed in cluster mode" in await linked.run()


@ensureDeferred
async def test_l18_a_server_that_takes_no_writes_is_left():
    server = Server(SCRIPT=b"-NOPERM\r\n", EVAL=b"-READONLY You can't write against a read only replica.\r\n")
    async with Linked(server) as linked:
        await until(lambda: linked.link._protocol)
        assert "READONLY" in await linked.run()
        server.answers["EVAL"] = b"+7\r\n"
        await linked.until_answered()
        assert len(server.opened) == 2


@ensureDeferred
async def test_l18_scripts_are_loaded_at_the_beginning_and_again_where_they_are_lost():
    server = Server(SCRIPT=b"$40\r\n" + b"a" * 40 + b"\r\n")
    async with Linked(server) as linked:
        await until(lambda: linked.link._protocol)
        await linked.run()
        assert server.asked == ["PING"] + ["SCRIPT"] * 5 + ["EVAL"]


@ensureDeferred
async def test_l18_a_certificate_with_another_name_is_a_reason(monkeypatch):
    server = Server(tls_options(trustme.CA().issue_cert("other.example")))
    async with Linked(server, secure=True, hosts=(("localhost", server.port),)) as linked:
        await until(lambda: len(server.opened) > 1)
        assert "its certificate is for another name" in await linked.run()


@ensureDeferred
async def test_l18_a_connection_that_is_refused_is_tried_again_without_a_line():
    server = Server()
    await server.stop()
    link = RedisLink(StoreAddress(hosts=(("127.0.0.1", server.port),)))
    with lines_of_the_log() as lines:
        link.start()
        await until(lambda: "refused" in link._reason)
        with pytest.raises(StoreError, match="refused"):
            await link.run("", [], [])
        link.close()
    assert lines == []


# Sentinels


def listed(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def role(name: bytes) -> bytes:
    return b"*3\r\n$%d\r\n%s\r\n:0\r\n*0\r\n" % (len(name), name)


@ensureDeferred
async def test_l18_the_first_sentinel_that_knows_the_server_is_asked_before_each_connection():
    server, other = Server(ROLE=role(b"master")), Server(ROLE=role(b"slave"))
    named = listed(b"127.0.0.1", str(other.port).encode())
    sentinels = [Server(SENTINEL=b"*-1\r\n"), Server(SENTINEL=b"-ERR what\r\n"), Server(SENTINEL=named)]
    hosts = tuple(("127.0.0.1", each.port) for each in sentinels)
    async with Linked(server, hosts=hosts, sentinel="main") as linked:
        await until(lambda: len(other.opened) > 2)
        assert "not the primary server" in await linked.run()
        sentinels[2].answers["SENTINEL"] = listed(b"127.0.0.1", str(server.port).encode())
        await linked.until_answered()
        for each in (*sentinels, other):
            await each.stop()
        server.opened[0].transport.abortConnection()
        await until(lambda: "no sentinel names" in linked.link._reason)


@pytest.mark.parametrize(
    "sent", [b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"+\xff\r\n", b"*-1\r\n", b"-ERR no\r\n", b"", b"*1\r\n" * 99, b":1\r\n"]
)
@ensureDeferred
async def test_l18_a_sentinel_that_names_nothing_logs_nothing(monkeypatch, sent):
    monkeypatch.setattr(store_link, "SENTINEL_SECONDS", 0.1)
    sentinel = Server(SENTINEL=sent)
    async with Linked(sentinel, sentinel="main") as linked:
        await until(lambda: len(sentinel.opened) > 2)
        assert "no sentinel names the primary server of main" in await linked.run()


@pytest.mark.parametrize("more", [{"password": Secret("x" * 20)}, {"sentinel": "main"}], ids=["store", "sentinel"])
@ensureDeferred
async def test_l18_a_link_that_is_closed_while_it_connects_leaves_nothing(more):
    server = Server(AUTH=b"", SENTINEL=b"")
    async with Linked(server, **more) as linked:
        await until(lambda: server.asked)
        linked.link.close()
        await until(lambda: not server.opened[0].connected)
        await deferLater(reactor, 0.1)
        assert len(server.opened) == 1
