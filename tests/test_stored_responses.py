"""I1 to I4: ids that live at a provider, through the whole gateway in memory."""

from __future__ import annotations

import json

import msgspec
import pytest
from twisted.internet.defer import fail
from twisted.internet.error import ConnectionRefusedError

from aigw.protocols.endpoints import ENDPOINTS
from aigw.proxy.gateway import Gateway
from aigw.routing.response_ids import MOST, Place, ResponseIds, is_id
from aigw.secret import Secret
from aigw.server import api
from aigw.settings.callers import Caller
from tests.harness import KEY, request
from tests.memory import MemoryGateway, Wire, body_of, error_of
from tests.providers import STREAM_HEAD, chunk, head
from tests.test_responses import CREATED, delta, sent

PATH = "/v1/responses"
ASKED = {"model": "route", "input": "hi"}
COMPLETED = sent("response.completed", 3, response={"id": "resp_1", "status": "completed", "output": []})


def response(name: str = "resp_1", **more) -> bytes:
    return json.dumps({"id": name, "object": "response", "status": "completed", "output": [], **more}).encode()


def ok(body: bytes, status: int = 200, **headers: str) -> bytes:
    return head(status, Content_Length=str(len(body)), **headers) + body


NOT_FOUND = ok(b'{"error": {"message": "Response with id \'resp_1\' not found."}}', 404)


def said(world: MemoryGateway, step: str) -> bytes:
    """What the provider of a step was sent since the last time; nothing if it was never asked."""
    return b"".join(wire.take() for wire in world.doors[step].wires) if step in world.doors else b""


def answer(world: MemoryGateway, step: str, data: bytes) -> bytes:
    got = said(world, step)
    world.doors[step].wire.say(data)
    return got


def ask(
    world: MemoryGateway, body: dict | None = None, target: str = PATH, method: str = "POST", key: str = KEY
) -> Wire:
    client = world.open()
    client.say(request(body, target, method, {"Authorization": f"Bearer {key}"}))
    return client


def created_at(step: str, name: str = "resp_1", world: MemoryGateway | None = None) -> MemoryGateway:
    """A gateway whose client got a response from that step."""
    world = world or MemoryGateway()
    client = ask(world, ASKED)
    if step == "p2":
        answer(world, "p1", ok(b"{}", 500))
    answer(world, step, ok(response(name)))
    assert b" 200 " in client.take()[:20]
    return world


def status_of(client: Wire) -> int:
    got = client.take()
    client.say(b"")
    return int(got[9:12])


# I1: a known id goes to its step


def test_i1_a_request_that_continues_a_response_goes_to_its_step_alone():
    world = created_at("p2")
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"})
    got = answer(world, "p2", ok(response("resp_2")))
    assert b'"previous_response_id":"resp_1"' in got.replace(b": ", b":")
    assert b'"model":"model-of-p2"' in got
    assert said(world, "p1") == b""
    assert b"x-aigw-step: 2\r\n" in client.take().lower()
    client = ask(world, {**ASKED, "previous_response_id": "resp_2"})
    assert b"resp_2" in said(world, "p2"), "and what comes of it stays there"


def test_i1_so_does_the_id_of_a_stream():
    world = MemoryGateway()
    client = ask(world, {**ASKED, "stream": True})
    answer(world, "p1", ok(b"{}", 500))
    answer(world, "p2", STREAM_HEAD + b"".join(map(chunk, [CREATED, delta(1), COMPLETED])) + b"0\r\n\r\n")
    assert b"response.completed" in client.take()
    ask(world, {**ASKED, "previous_response_id": "resp_1"})
    assert b"resp_1" in said(world, "p2")
    assert said(world, "p1") == b""


@pytest.mark.parametrize("path", ["responses/compact", "responses/input_tokens"])
def test_i1_so_do_the_endpoints_below_it(path):
    world = created_at("p2")
    ask(world, {**ASKED, "previous_response_id": "resp_1"}, f"/v1/{path}")
    assert said(world, "p2").startswith(b"POST /v1/%s HTTP/1.1" % path.encode())
    assert said(world, "p1") == b""


BELOW = [
    ("GET", "/v1/responses/resp_1", response()),
    ("GET", "/v1/responses/resp_1?include[]=a&x=%20", response(status="failed", error={"code": "x", "message": "no"})),
    ("DELETE", "/v1/responses/resp_1", b'{"id": "resp_1", "object": "response", "deleted": true}'),
    ("POST", "/v1/responses/resp_1/cancel", response(status="cancelled")),
    ("GET", "/v1/responses/resp_1/input_items?limit=2", b'{"object": "list", "data": []}'),
]


@pytest.mark.parametrize(("method", "target", "body"), BELOW)
def test_i2_what_is_below_the_id_goes_there_too(method, target, body):
    world = created_at("p2")
    client = ask(world, None, target, method)
    got = answer(world, "p2", ok(body))
    assert got.startswith(f"{method} {target} HTTP/1.1\r\nHost: p2\r\n".encode())
    assert b"Content-Length: 0\r\n" in got
    assert body_of(got) == b""
    assert b"Authorization: Bearer key-of-p2\r\n" in got
    assert KEY.encode() not in got
    assert body_of(client.take()) == body
    assert said(world, "p1") == b""
    record = world.records[-1]
    assert (record.path, record.provider, record.outcome) == ("/v1/responses/{id}", "p2", "ok")
    assert "resp_1" not in repr(record.attempts), "an id is the client's, and in no log line"


def test_i2_a_stream_of_a_stored_response_is_a_stream():
    world = created_at("p1")
    client = ask(world, None, "/v1/responses/resp_1?stream=true&starting_after=1", "GET")
    answer(world, "p1", STREAM_HEAD + chunk(delta(2)) + chunk(COMPLETED) + b"0\r\n\r\n")
    assert b"text/event-stream" in client.take()
    assert world.records[-1].stream


@pytest.mark.parametrize("query", ["x=%ff", "%ff=%00&stream=true", "stream=%e2%28%a1", "&" * 9000, "include[]=%C3%BC"])
def test_i2_s7_whatever_query_comes_goes_on_as_it_is(query):
    world = created_at("p1")
    ask(world, None, f"/v1/responses/resp_1?{query}", "GET")
    assert said(world, "p1").startswith(f"GET /v1/responses/resp_1?{query} HTTP/1.1\r\n".encode())


def test_i2_a_refusal_of_its_provider_is_passed_on():
    world = created_at("p1")
    client = ask(world, None, "/v1/responses/resp_1", "GET")
    answer(world, "p1", NOT_FOUND)
    got = client.take()
    assert got.startswith(b"HTTP/1.1 404 ")
    assert body_of(got) == body_of(NOT_FOUND)


def test_i2_a_deleted_id_is_forgotten():
    world = created_at("p2")
    ask(world, None, "/v1/responses/resp_1", "DELETE")
    answer(world, "p2", ok(b'{"id": "resp_1", "deleted": true}'))
    assert world.health.response_ids.place("default", "resp_1") is None
    world = created_at("p2")
    ask(world, None, "/v1/responses/resp_1", "DELETE")
    answer(world, "p2", NOT_FOUND)
    assert world.health.response_ids.place("default", "resp_1") is not None


# I3: 409


@pytest.mark.parametrize("target", ["/v1/responses", "/v1/responses/resp_1"])
def test_i3_a_step_that_cools_down_is_409_and_no_other_is_asked(target):
    world = created_at("p1")
    step = world.config.routes["route"].steps[0]
    world.health.at("responses").cool_down(step, 30, False)
    body, method = ({**ASKED, "previous_response_id": "resp_1"}, "POST") if target == PATH else (None, "GET")
    client = ask(world, body, target, method)
    got = client.take()
    assert got.startswith(b"HTTP/1.1 409 ")
    assert error_of(got)["code"] == "state_elsewhere"
    assert "cools down" in error_of(got)["message"]
    assert b"retry-after: 30\r\n" in got.lower() or b"retry-after: 31\r\n" in got.lower()
    assert said(world, "p1") == said(world, "p2") == b""


def test_i3_a_route_without_its_provider_is_409():
    routes = [
        {"name": "route", "steps": [{"provider": "p1", "model": "a"}]},
        {"name": "other", "steps": [{"provider": "p2", "model": "b"}]},
    ]
    world = created_at("p1", world=MemoryGateway(top={"routes": routes}))
    client = ask(world, {**ASKED, "model": "other", "previous_response_id": "resp_1"})
    got = client.take()
    assert got.startswith(b"HTTP/1.1 409 ")
    assert "'other' has no step of the provider 'p1'" in error_of(got)["message"]
    assert b"x-should-retry: false\r\n" in got.lower()
    assert said(world, "p2") == b""


def test_i3_another_model_of_the_provider_has_the_response_too():
    steps = [{"provider": "p2", "model": "b"}, {"provider": "p1", "model": "c"}]
    routes = [{"name": "route", "steps": [{"provider": "p1", "model": "a"}]}, {"name": "other", "steps": steps}]
    world = created_at("p1", world=MemoryGateway(top={"routes": routes}))
    ask(world, {**ASKED, "model": "other", "previous_response_id": "resp_1"})
    assert b'"model":"c"' in said(world, "p1")
    assert said(world, "p2") == b""


def test_i3_a_provider_that_is_removed_is_409():
    """By a reload: the ids outlive it."""
    old = created_at("p2")
    world = MemoryGateway(1)
    world.gateway.stored._ids = old.health.response_ids
    client = ask(world, None, "/v1/responses/resp_1", "GET")
    got = client.take()
    assert got.startswith(b"HTTP/1.1 409 ")
    assert "has no step of the provider 'p2'" in error_of(got)["message"]


def test_i3_a_provider_that_cannot_be_reached_is_409():
    world = created_at("p1")
    world.doors["p1"].wire.lost(ConnectionRefusedError())
    world.doors["p1"].opens = fail(ConnectionRefusedError())
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"})
    got = client.take()
    assert got.startswith(b"HTTP/1.1 409 ")
    assert error_of(got)["attempts"][0]["outcome"] == "unreachable"
    assert said(world, "p2") == b""


def test_i3_another_failure_of_it_is_its_502():
    world = created_at("p1")
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"})
    answer(world, "p1", ok(b"{}", 500))
    assert status_of(client) == 502
    assert said(world, "p2") == b""


# I4: an unknown id


def test_i4_an_unknown_id_is_looked_up_once_at_each_provider():
    world = MemoryGateway()
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"})
    got = answer(world, "p1", NOT_FOUND)
    assert got.startswith(b"GET /v1/responses/resp_1 HTTP/1.1\r\nHost: p1\r\n")
    assert b"Authorization: Bearer key-of-p1\r\n" in got
    got = answer(world, "p2", ok(response()))
    assert got.startswith(b"GET /v1/responses/resp_1 HTTP/1.1\r\nHost: p2\r\n")
    got = answer(world, "p2", ok(response("resp_2")))
    assert got.startswith(b"POST /v1/responses HTTP/1.1\r\n")
    assert status_of(client) == 200
    assert said(world, "p1") == b""
    ask(world, {**ASKED, "previous_response_id": "resp_1"})
    assert said(world, "p2").startswith(b"POST "), "now it is known"
    assert said(world, "p1") == b""
    assert [len(record.attempts) for record in world.records] == [1]


@pytest.mark.parametrize(("method", "target", "body"), BELOW)
def test_i4_so_is_one_in_a_path(method, target, body):
    world = MemoryGateway()
    client = ask(world, None, target, method)
    assert answer(world, "p1", NOT_FOUND).startswith(b"GET /v1/responses/resp_1 HTTP/1.1")
    assert answer(world, "p2", ok(response())).startswith(b"GET /v1/responses/resp_1 HTTP/1.1")
    assert answer(world, "p2", ok(body)).startswith(f"{method} {target} HTTP".encode())
    assert body_of(client.take()) == body


@pytest.mark.parametrize(
    "first",
    [ok(b'{"id": "resp_2"}'), ok(b"<html>resp_1</html>"), ok(b"", 405), ok(b"{}", 501)],
    ids=["another id", "a page", "405", "501"],
)
def test_i4_an_answer_without_the_id_is_none(first):
    world = MemoryGateway()
    ask(world, {**ASKED, "previous_response_id": "resp_1"})
    answer(world, "p1", first)
    assert said(world, "p2").startswith(b"GET /v1/responses/resp_1")


def test_i4_an_id_that_is_nowhere():
    world = MemoryGateway()
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"})
    for step in ("p1", "p2"):
        answer(world, step, NOT_FOUND)
    got = client.take()
    assert got.startswith(b"HTTP/1.1 400 ")
    assert (error_of(got)["code"], error_of(got)["param"]) == ("previous_response_not_found", "previous_response_id")
    client = ask(world, None, "/v1/responses/resp_1", "GET")
    for step in ("p1", "p2"):
        answer(world, step, NOT_FOUND)
    got = client.take()
    assert got.startswith(b"HTTP/1.1 404 ")
    assert error_of(got)["code"] == "response_not_found"


@pytest.mark.parametrize("silence", [ok(b"{}", 500), ok(b"{}", 401), None], ids=["500", "401", "silence"])
def test_i4_a_provider_that_does_not_say_may_have_it(silence):
    world = MemoryGateway()
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"})
    if silence is None:
        world.clock.advance(10.1)
    else:
        answer(world, "p1", silence)
    answer(world, "p2", NOT_FOUND)
    got = client.take()
    assert got.startswith(b"HTTP/1.1 409 ")
    assert "'p1' cannot be asked" in error_of(got)["message"]


def test_i4_with_one_provider_there_is_nothing_to_look_up():
    world = MemoryGateway(1)
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"})
    assert answer(world, "p1", NOT_FOUND).startswith(b"POST /v1/responses ")
    assert body_of(client.take()) == body_of(NOT_FOUND)


def test_i4_a_client_that_leaves_ends_the_search():
    world = MemoryGateway()
    client = ask(world, None, "/v1/responses/resp_1", "GET")
    client.lost(ConnectionError())
    assert world.doors["p1"].wire.disconnected
    assert [record.outcome for record in world.records] == ["client_gone"]


# Trust: ids of other callers, and ids that are paths


OTHER = "another-key-of-another-caller"


def with_two_callers() -> MemoryGateway:
    world = MemoryGateway()
    callers = (*world.config.callers, Caller("other", Secret(OTHER)))
    config = msgspec.structs.replace(world.config, callers=callers)
    gateway = Gateway(config, world.gateway.upstream, world.health, world.clock, lambda *_: None)
    world.site.resource = api.tree(config, gateway, world.records.append)
    return world


@pytest.mark.parametrize(("method", "target", "body"), BELOW)
def test_i4_the_id_of_another_caller_is_unknown_and_asked_for_nowhere(method, target, body):
    world = created_at("p1", world=with_two_callers())
    client = ask(world, None, target, method, OTHER)
    assert status_of(client) == 404
    assert said(world, "p1") == said(world, "p2") == b""
    client = ask(world, {**ASKED, "previous_response_id": "resp_1"}, key=OTHER)
    assert status_of(client) == 400
    assert said(world, "p1") == said(world, "p2") == b""
    ask(world, None, target, method)
    assert said(world, "p1"), "its own caller reaches it"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a%2f", "a b", "a\r\nb", "a?b", "a#b", "\u00e9", "x" * 513])
def test_i2_what_is_no_id_is_in_no_url(name):
    assert not is_id(name)
    world = MemoryGateway()
    client = ask(world, {**ASKED, "previous_response_id": name})
    if name:
        assert status_of(client) == 400
        assert said(world, "p1") == said(world, "p2") == b""


@pytest.mark.parametrize("value", [1, [], {}, True])
def test_i1_an_id_is_a_string(value):
    client = ask(MemoryGateway(), {**ASKED, "previous_response_id": value})
    got = client.take()
    assert got.startswith(b"HTTP/1.1 400 ")
    assert error_of(got)["param"] == "previous_response_id"


@pytest.mark.parametrize("value", [None, ""])
def test_i1_null_continues_nothing(value):
    world = MemoryGateway()
    ask(world, {**ASKED, "previous_response_id": value})
    assert said(world, "p1").startswith(b"POST ")


def test_i1_elsewhere_it_is_a_member_like_others():
    world = MemoryGateway()
    ask(world, {"model": "route", "messages": [{"role": "user"}], "previous_response_id": 7}, "/v1/chat/completions")
    assert said(world, "p1").startswith(b"POST ")


# The map


def test_i1_the_map_is_bounded_and_forgets_what_was_used_least_lately():
    ids = ResponseIds()
    for number in range(MOST):
        ids.note("a", f"resp_{number}", Place("p", str(number % 3), "r"))
    assert ids.place("a", "resp_0") == Place("p", "0", "r")
    ids.note("a", "resp_new", Place("p"))
    assert ids.place("a", "resp_0") is not None
    assert ids.place("a", "resp_1") is None
    assert len(ids._places) == MOST
    assert ids.place("b", "resp_0") is None


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (response(), "resp_1"),
        (b'\xef\xbb\xbf { "id" : "resp_1", "output"', "resp_1"),
        (b'{"object": "response", "output": [{"id": "msg_1"}], "id": "resp_1"}', "resp_1"),
        (b'{"object": "response", "output": [{"id": "msg_1"}]}', ""),
        (b'{"id": 7}', ""),
        (CREATED + delta(1), "resp_1"),
        (delta(1), ""),
        (b"", ""),
    ],
)
def test_i1_where_the_id_of_an_answer_is(data, name):
    assert ENDPOINTS["responses"].id_in(data) == name
