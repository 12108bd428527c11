"""A1, A2: relatives of the fault table's rows: what an endpoint's answer has to show, in each form of an error."""

from __future__ import annotations

import json

import pytest

from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.meaning import ERROR, OUTPUT, SILENCE
from tests.memory import MemoryGateway
from tests.providers import LAST_CHUNK, STREAM, chunk, head

FORMS = [
    {"detail": "no"},
    {"code": 10013, "message": "no"},
    {"base_resp": {"status_code": 1008, "status_msg": "no"}},
    {"error_code": 17, "error_msg": "no"},
    {"error": {"message": "no"}},
    {"error": "no"},
    {"object": "error", "message": "no", "code": 400},
]
NOTHING = {"chat/completions": "choices", "completions": "choices", "embeddings": "data", "responses": "output"}


def checked(path: str, answer: object):
    return ENDPOINTS[path].check_answer(json.dumps(answer).encode())


@pytest.mark.parametrize("form", FORMS, ids=json.dumps)
@pytest.mark.parametrize("path", NOTHING)
def test_a1_an_error_beside_an_empty_answer_is_an_error(path, form):
    for nothing in ([], None):
        answer = {"id": "x", **form, NOTHING[path]: nothing}
        if form.get("object") and path == "responses" and nothing == []:
            continue  # an empty response with an odd ``object``
        assert checked(path, answer) == ("answered 2xx with an error", "no"), answer


@pytest.mark.parametrize("items", [[], [None], [None, None]], ids=json.dumps)
@pytest.mark.parametrize("path", ["chat/completions", "completions", "embeddings"])
def test_a1_a_list_of_nothing_is_no_answer(path, items):
    assert checked(path, {NOTHING[path]: items})[0].startswith("answered 2xx without anything in")
    assert checked(path, {NOTHING[path]: [*items, {"index": 0}]}) is None


@pytest.mark.parametrize(
    ("count", "good"), [(0, 1), (5, 1), (5.0, 1), (True, 0), ("5", 0), (None, 0), ([1], 0), ({}, 0)]
)
def test_r3_a_count_of_tokens_is_a_number(count, good):
    assert (checked("responses/input_tokens", {"input_tokens": count}) is None) == good


@pytest.mark.parametrize("form", FORMS, ids=json.dumps)
@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_a2_an_error_in_any_form_is_one_before_the_first_output(path, form):
    scanner = ENDPOINTS[path].scanner()
    assert scanner.feed(b"data: %s\n\n" % json.dumps(form).encode())[1] is ERROR
    assert scanner.error


@pytest.mark.parametrize("form", FORMS, ids=json.dumps)
@pytest.mark.parametrize("together", [True, False])
def test_a4b_and_one_after_it(form, together):
    scanner = ENDPOINTS["chat/completions"].scanner()
    output = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": null}]}\n\n'
    error = b"data: %s\n\n" % json.dumps(form).encode()
    for data in [output + error] if together else [output, output, error]:
        scanner.feed(data)
    assert scanner.failure is not None
    assert scanner.failure.code == "provider_error"
    assert scanner.failure.reported == ("error" in form)


def test_a4b_what_a_model_writes_is_no_error():
    scanner = ENDPOINTS["chat/completions"].scanner()
    for text in ('{"detail": "no"}', '"message"', "base_resp", '{"code": 1, "message": "x"}'):
        event = {
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
            "detail": None,
            "code": 0,
        }
        assert scanner.feed(b"data: %s\n\n" % json.dumps(event).encode())[1] is OUTPUT
    assert scanner.failure is None


LABELS = {
    b"application/json": b"text/event-stream",
    b"application/x-ndjson": b"text/event-stream",
    b"application/stream+json": b"text/event-stream",
    b"text/plain; charset=utf-8": b"text/event-stream",
    b"application/octet-stream": b"text/event-stream",
    b"text/html": b"text/event-stream",
    b"Text/Event-Stream; charset=utf-8": b"Text/Event-Stream; charset=utf-8",
}


@pytest.mark.parametrize("label", LABELS)
def test_a2a_a_stream_under_any_other_label_goes_on_under_its_own(label):
    world = MemoryGateway()
    client = world.ask(stream=True)
    sent = head(kind=label.decode(), Transfer_Encoding="chunked") + b"".join(map(chunk, STREAM)) + LAST_CHUNK
    world.doors["p1"].wire.say(sent)
    answer = client.take()
    assert [line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-type:")] == [
        b"Content-Type: " + LABELS[label]
    ]
    assert world.records[0].outcome == "ok"


@pytest.mark.parametrize("label", ["text/plain", "application/octet-stream", "application/x-ndjson"])
def test_a2a_what_begins_with_no_field_is_no_stream_under_another_label(label):
    world = MemoryGateway()
    world.ask(stream=True)
    body = b"upstream connect error or disconnect/reset before headers"
    world.doors["p1"].wire.say(head(kind=label, Content_Length=str(len(body))) + body)
    assert world.failed[0].outcome == "broken"
    assert world.doors["p2"].wires


@pytest.mark.parametrize("name", ["ping", "keepalive", "keep-alive", "keep_alive", "heartbeat"])
@pytest.mark.parametrize("form", [b'data: {"type": "%s"}\n\n', b'event: %s\ndata: {"x": 1}\n\n'], ids=["type", "event"])
@pytest.mark.parametrize("path", ["chat/completions", "responses"])
def test_a2_a_sign_of_life_is_no_output(path, form, name):
    assert ENDPOINTS[path].scanner().feed(form % name.encode())[1] is SILENCE
