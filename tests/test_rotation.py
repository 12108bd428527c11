"""C2, C3, C8, L5: keys come, end and change while requests run: those under way finish, and what was used stays counted."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pytest_twisted import ensureDeferred

from tests.harness import HELLO, bounded, request, until
from tests.providers import DONE, LAST_CHUNK, STREAM, answer, as_asked, begin_stream, chunk, completion, event
from tests.test_daemon import CONFIG, KEYS, Daemon, wait_until
from tests.test_keys import ALICE, BOB, named, write

CAROL = "aigw_" + "c" * 40
END = b"".join(map(chunk, [*STREAM[2:-1], DONE])) + LAST_CHUNK
USED = [event(finish_reason="stop", usage={"prompt_tokens": 30, "completion_tokens": 40, "total_tokens": 70}), DONE]
HELLO_IN_TEXT = json.dumps({"model": "r", "messages": [{"role": "user", "content": "hi"}]})


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def streaming(world, path, **settings):
    """A gateway with a stream of alice under way, its client and its provider."""
    write(path, named("alice", ALICE, **settings))
    provider = world.provider(as_asked(answer(body=completion()), begin_stream(*STREAM[:2])))
    gateway = world.gateway(provider, top={"keys_file": str(path)})
    client = await gateway.send(request({**HELLO, "stream": True}, headers=auth(ALICE)))
    await bounded(client.started)
    return gateway, client, provider


async def statuses(gateway, *keys: str) -> list[int]:
    return [(await gateway.ask(headers=auth(key))).status for key in keys]


def callers(gateway) -> dict:
    return {caller.name: caller for caller in gateway.service.config.callers}


CHANGES = {
    "disabled": [named("alice", ALICE, disabled=True)],
    "expired": [named("alice", ALICE, expires="2020-01-01")],
    "past not_after": [named("alice", ALICE, not_after="2020-01-01T00:00:00Z")],
    "removed": [named("bob", BOB)],
    "of another name": [named("carol", ALICE, disabled=True)],
    "replaced": [named("alice", BOB)],
}


@pytest.mark.parametrize("change", CHANGES)
@ensureDeferred
async def test_c3_c8_a_key_that_ends_during_a_stream_ends_no_stream(world, change):
    path = world.folder / "keys.yaml"
    gateway, client, provider = await streaming(world, path, tokens="100k/m", concurrency=1)
    before = gateway.service.config
    write(path, *CHANGES[change])
    await until(lambda: gateway.service.config is not before)
    assert await statuses(gateway, ALICE) == [401]
    provider.connections[0].send(END)
    got = await bounded(client.done)
    assert (got.status, got.whole) == (200, True)
    assert got.body == b"".join(STREAM)


@ensureDeferred
async def test_c3_not_after_passes_during_a_stream(world):
    path = world.folder / "keys.yaml"
    gateway, client, provider = await streaming(world, path, not_after="2099-01-01")
    gateway.service._site.resource.keys._now = lambda: time.time() + 100 * 366 * 86400
    assert await statuses(gateway, ALICE) == [401]
    provider.connections[0].send(END)
    assert (await bounded(client.done)).body == b"".join(STREAM)


@ensureDeferred
async def test_l5_limits_that_change_during_a_stream_keep_the_count(world):
    path = world.folder / "keys.yaml"
    gateway, client, provider = await streaming(world, path, concurrency=1, tokens="100k/m", requests="10/h")
    assert await statuses(gateway, ALICE) == [429], "its slot is taken"
    write(path, named("alice", ALICE, concurrency=2, tokens="5k/m", requests="4/h"))
    await until(lambda: callers(gateway)["alice"].accounts[0].concurrency == 2)
    assert await statuses(gateway, ALICE) == [200]
    write(path, named("alice", ALICE, concurrency=1, tokens="5k/m", requests="4/h"))
    await until(lambda: callers(gateway)["alice"].accounts[0].concurrency == 1)
    assert await statuses(gateway, ALICE) == [429], "the stream has the slot of the new limit"
    provider.connections[0].send(b"".join(map(chunk, USED)) + LAST_CHUNK)
    assert (await bounded(client.done)).whole
    used = json.loads((await gateway.get("/v1/usage", auth(ALICE))).body)["data"][0]
    assert (used["limits"]["requests"]["limit"], used["limits"]["requests"]["remaining"]) == (4, 2)
    assert used["limits"]["tokens"]["reserved"] == 0
    assert used["limits"]["tokens"]["spent"] >= 70 + 1
    assert await statuses(gateway, ALICE, ALICE, ALICE) == [200, 200, 429]


@ensureDeferred
async def test_l2_c8_a_request_that_waits_for_a_slot_is_served_though_its_key_is_gone(world):
    path = world.folder / "keys.yaml"
    gateway, client, provider = await streaming(world, path, concurrency=1, wait="30s")
    waits = await gateway.send(request(HELLO, headers=auth(ALICE)))
    await until(lambda: gateway.service._admission.queues)
    write(path, named("bob", BOB))
    await until(lambda: "bob" in callers(gateway))
    provider.connections[0].send(END)
    assert (await bounded(client.done)).whole
    assert (await bounded(waits.done)).status == 200


# A real daemon under load


class Answering(BaseHTTPRequestHandler):
    """A provider."""

    protocol_version = "HTTP/1.1"
    data = completion()

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *_):
        pass


@pytest.fixture
def daemon(tmp_path):
    """One whose keys are in ``keys.yaml``: alice with her first key."""
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    provider.daemon_threads = True
    provider.handle_error = lambda *_: None
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    write(tmp_path / "keys.yaml", named("alice", ALICE, concurrency=50))
    base_url = f"base_url: http://127.0.0.1:{provider.server_port}/v1"
    config = re.sub(r'base_url: "[^"]+"', base_url, CONFIG) + "keys_file: keys.yaml\n"
    with Daemon(tmp_path, config=config, environ=KEYS) as daemon:
        daemon.wait_for("The gateway has started")
        yield daemon
    provider.shutdown()
    provider.server_close()


def test_c2_a_key_is_replaced_twice_under_load_and_no_request_fails(daemon, tmp_path):
    """As ``docs/keys.md`` has it: a second entry, the clients change, the first entry goes."""
    path, host, port = tmp_path / "keys.yaml", *daemon.address()
    keys, seen, ended = [ALICE], [], threading.Event()

    def client() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        while not ended.is_set():
            key = keys[-1]
            connection.request("POST", "/v1/chat/completions", HELLO_IN_TEXT, auth(key))
            answer = connection.getresponse()
            answer.read()
            seen.append((key, answer.status))
        connection.close()

    def count(key: str) -> int:
        return sum(used == key for used, _ in seen)

    def after_the_next_requests(key: str) -> None:
        """Each client has the answer to a request that it began after this."""
        before = count(key)
        wait_until(lambda: count(key) >= before + 2 * len(clients))

    clients = [threading.Thread(target=client) for _ in range(6)]
    for each in clients:
        each.start()
    try:
        for number, (old, new) in enumerate([(ALICE, BOB), (BOB, CAROL)]):
            after_the_next_requests(old)
            write(path, named("alice", old, concurrency=50, not_after="2099-01-01"), named("alice", new))
            daemon.wait_for("The gateway has reloaded", 2 * number + 1)
            keys.append(new)
            after_the_next_requests(new)
            write(path, named("alice", new, concurrency=50))
            daemon.wait_for("The gateway has reloaded", 2 * number + 2)
            after_the_next_requests(new)
    finally:
        ended.set()
        for each in clients:
            each.join()
    assert {status for _, status in seen} == {200}
    assert all(count(key) >= 12 for key in (ALICE, BOB, CAROL))
    connection = http.client.HTTPConnection(host, port, timeout=30)
    for key in (ALICE, BOB):
        connection.request("GET", "/v1/models", headers=auth(key))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 401
    connection.close()
