"""Which headers cross the gateway, in either direction."""

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aigw.headers import for_client, for_provider, request_id, value

TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
JSON = (b"content-type", b"application/json")


def passed(sent: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """What a provider gets of these client headers."""
    return for_provider(sent.get)


# R4: to the provider


@pytest.mark.parametrize("name", b"accept openai-beta idempotency-key http-referer x-title".split())
def test_r4_an_allow_list_of_client_headers_goes_on(name):
    assert passed({name: b"its value"}) == [JSON, (name, b"its value")]


@pytest.mark.parametrize(
    "name",
    b"authorization x-api-key api-key proxy-authorization cookie set-cookie host connection keep-alive te trailer "
    b"transfer-encoding upgrade expect content-length content-encoding accept-encoding user-agent x-request-id "
    b"x-forwarded-for forwarded via origin referer openai-organization openai-project x-aigw-route baggage "
    b"tracestate".split(),
)
def test_r4_every_other_client_header_stays(name):
    assert passed({name: TRACE}) == [JSON]


@given(st.dictionaries(st.binary(min_size=1), st.binary(min_size=1)))
def test_r4_only_the_allow_list(sent):
    allowed = b"content-type accept openai-beta idempotency-key http-referer x-title traceparent".split()
    assert all(name in allowed for name, _ in passed(sent))


def test_r4_all_of_the_allow_list_at_once():
    sent = dict.fromkeys(b"x-title accept openai-beta idempotency-key http-referer cookie".split(), b"v")
    assert dict(passed(sent)) == {name: b"v" for name in sent if name != b"cookie"} | dict([JSON])


def test_r4_an_empty_header_does_not_go_on():
    assert passed({b"accept": b"", b"traceparent": b""}) == [JSON]


@pytest.mark.parametrize(
    ("trace", "goes_on"),
    [
        (TRACE, True),
        (TRACE[:-2] + b"00", True),
        (TRACE.upper(), False),
        (TRACE + b"-more", False),
        (TRACE + b"\n", False),
        (b" " + TRACE, False),
        (TRACE[:-1], False),
        (TRACE.replace(b"4bf92f", b"xyzxyz"), False),
        (TRACE.replace(b"-", b"_"), False),
        (TRACE + b", " + TRACE, False),
        (b"00", False),
        (b"", False),
    ],
)
def test_r4_traceparent_goes_on_if_it_is_well_formed(trace, goes_on):
    assert passed({b"traceparent": trace}) == [JSON, *([(b"traceparent", trace)] if goes_on else [])]


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (None, b"application/json"),
        (b"", b"application/json"),
        (b"application/json", b"application/json"),
        (b"application/json; charset=utf-8", b"application/json; charset=utf-8"),
        (b"Application/JSON;charset=UTF-8", b"Application/JSON;charset=UTF-8"),
        (b"application/json ;x", b"application/json ;x"),
        (b"text/plain", b"application/json"),
        (b"application/json-seq", b"application/json"),
        (b"application/x-www-form-urlencoded", b"application/json"),
        (b"multipart/form-data; boundary=application/json", b"application/json"),
        (b"application/json, text/plain", b"application/json"),
    ],
)
def test_r4_the_content_type_is_json(kind, told):
    """The body was read as JSON, so it is told as JSON; curl's default would have it be a form."""
    assert passed({} if kind is None else {b"content-type": kind}) == [(b"content-type", told)]


# A5: to the client


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"Content-Type", b"content-type"),
        (b"Retry-After", b"retry-after"),
        (b"retry-after-ms", b"retry-after-ms"),
        (b"X-RateLimit-Remaining-Tokens", b"x-ratelimit-remaining-tokens"),
        (b"OpenAI-Processing-Ms", b"openai-processing-ms"),
        (b"openai-organization", b"openai-organization"),
        (b"X-Request-Id", b"x-upstream-request-id"),
    ],
)
def test_a5_a_providers_headers_that_pass(name, told):
    assert for_client([(name, [b"its value"])]) == [(told, b"its value")]


@pytest.mark.parametrize(
    "name",
    b"Set-Cookie Server Via Location Content-Length Content-Encoding Transfer-Encoding Connection Keep-Alive Trailer "
    b"Upgrade Date Alt-Svc Strict-Transport-Security CF-Ray X-Powered-By Access-Control-Allow-Origin Authorization "
    b"X-Api-Key x-aigw-route x-upstream-request-id retry-after-x my-openai-key x-ratelimit content-type-options "
    b"Cache-Control".split(),
)
def test_a5_a_providers_other_headers_stay(name):
    assert for_client([(name, [b"its value"])]) == []


def test_a5_of_a_header_that_stands_twice_the_last_counts():
    answered = [(b"Content-Type", [b"text/html", b"application/json"]), (b"X-Request-Id", [b"a", b"b"])]
    assert for_client(answered) == [(b"content-type", b"application/json"), (b"x-upstream-request-id", b"b")]


# A5: the request id


@pytest.mark.parametrize(
    "offered", [b"a", b"req_123", b"550e8400-e29b-41d4-a716-446655440000", b"a.b:c/d+e=f@g", b"x" * 128]
)
def test_a5_a_sane_request_id_is_kept(offered):
    assert request_id(offered) == offered.decode()


@pytest.mark.parametrize(
    "offered",
    [None, b"", b"x" * 129, b"a b", b"a\n", b"a\r\nx-evil: 1", b'a"b', b"a,b", b"<a>", b"\xc3\xa9", b"\xff", b"a\0"],
)
def test_a5_any_other_request_id_is_replaced(offered):
    first, second = request_id(offered), request_id(offered)
    assert re.fullmatch("[0-9a-f]{32}", first)
    assert first != second


# A5: route, provider and model as header values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("smart", b"smart"),
        ("org/model:free@v1.5~x_y-z", b"org/model:free@v1.5~x_y-z"),
        ("two words", b"two words"),
        ("modèle", b"mod%C3%A8le"),
        ("模型", b"%E6%A8%A1%E5%9E%8B"),
        ("100%", b"100%25"),
        ("a\r\nx-evil: 1", b"a%0D%0Ax-evil: 1"),
        ("\x00\x7f", b"%00%7F"),
        ("\u2028", b"%E2%80%A8"),
        ("", b""),
    ],
)
def test_a5_what_is_not_printable_ascii_is_percent_encoded(text, told):
    assert value(text) == told


@given(st.text())
def test_a5_a_header_value_can_be_read_back(text):
    told = value(text)
    assert all(32 <= byte < 127 for byte in told)
    assert unquote(told.decode()) == text
