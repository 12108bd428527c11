"""R8: forms (multipart/form-data): only the bytes of the model change, and of what two readers may read in two ways nothing passes."""

from __future__ import annotations

import gzip
import json
import re
import time

import msgspec
import pytest
from hypothesis import strategies as st
from pytest_twisted import ensureDeferred

from aigw.errors import BadRequest
from aigw.protocols.endpoint import Call, RawRequest
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.shaping import UNCHANGED
from aigw.protocols.walk import whole
from aigw.settings.bodies import BodyChanges
from tests.harness import AUTH, KEY, bounded, request
from tests.memory import MemoryGateway, error_of
from tests.properties import given
from tests.providers import answer, head

TRANSCRIPTIONS, EDITS, VARIATIONS = "audio/transcriptions", "images/edits", "images/variations"
OF_FORMS = [path for path, endpoint in ENDPOINTS.items() if b"multipart/form-data" in endpoint.takes]
BOUNDARY = b"----WebKitFormBoundary7MA4YWxkTrZu0gW"
TEXT = b'{"text": "hello"}'
MIB = 1024 * 1024


def part(name: bytes, value: bytes, more: bytes = b"", headers: bytes = b"") -> tuple[bytes, bytes]:
    return b'Content-Disposition: form-data; name="%s"%s%s' % (name, more, headers), value


MODEL = part(b"model", b"route")
FILE = part(b"file", b"RIFF\x00\r\n\xff", b'; filename="a.wav"', b"\r\nContent-Type: audio/wav")


def form(
    *parts: tuple[bytes, bytes], boundary: bytes = BOUNDARY, preamble: bytes = b"", epilogue: bytes = b"\r\n"
) -> bytes:
    between = [b"--%s\r\n%s\r\n\r\n%s\r\n" % (boundary, written, value) for written, value in parts]
    return preamble + b"".join(between) + b"--%s--" % boundary + epilogue


def named(boundary: bytes = BOUNDARY) -> bytes:
    return b"multipart/form-data; boundary=" + boundary


def read(body: bytes, kind: bytes | None = None, path: str = TRANSCRIPTIONS) -> Call:
    endpoint = ENDPOINTS[path]
    found = endpoint.read(RawRequest(endpoint, body, content_type=named() if kind is None else kind))
    return found if isinstance(found, Call) else whole(found)


def sent(body: bytes, kind: bytes | None = None, model: str = "real", path: str = TRANSCRIPTIONS) -> bytes:
    changes = BodyChanges(conflict_resolution="tools")
    made, difference = ENDPOINTS[path].rewrite(read(body, kind, path), msgspec.Raw(msgspec.json.encode(model)), changes)
    data = made if isinstance(made, bytes) else b"".join(made)
    assert (len(made), difference) == (len(data), UNCHANGED)
    return data


# What changes


@pytest.mark.parametrize("path", OF_FORMS)
@pytest.mark.parametrize("parts", [[MODEL, FILE], [FILE, MODEL], [part(b"prompt", b""), MODEL, part(b"a", b"--")]])
def test_r8_only_the_bytes_of_the_model_change(path, parts):
    body = form(*parts, preamble=b"before\r\n", epilogue=b"\r\nbehind")
    assert read(body, path=path).model == "route"
    assert sent(body, path=path) == body.replace(b"\r\n\r\nroute\r\n", b"\r\n\r\nreal\r\n")
    assert sent(body, model='modèle/"x"', path=path) == body.replace(b"\r\nroute\r\n", '\r\nmodèle/"x"\r\n'.encode())


LOOK_ALIKES = [
    BOUNDARY,
    b"--" + BOUNDARY,
    b"\r\n--" + BOUNDARY + b"x",
    b"\r\n--" + BOUNDARY[:-1],
    b"\n--" + BOUNDARY + b"\r\n",
]
LOOK_ALIKES += [b"\r\n--" + BOUNDARY + b"--x", b"\r\n--" + BOUNDARY + b"-\r\n", b"\r--" + BOUNDARY + b"--\r\n"]
LOOK_ALIKES += [
    b'Content-Disposition: form-data; name="model"\r\n\r\nroute',
    b"\0",
    b"\r\n" * 5,
    b"\r",
    b"\n",
    b"\r\n\r\n",
]
_content = st.lists(st.binary(max_size=8) | st.sampled_from(LOOK_ALIKES), max_size=6).map(b"".join)
_name = st.sampled_from([b"file", b"prompt", b"language", b"image[]", b"models", b"n2", b"xmodel", "é".encode()])
_other = st.tuples(_name, _content, st.sampled_from([b"", b'; filename="a\\"b.wav"', b"; filename*=UTF-8''x%20y"]))


def _is_content(value: bytes) -> bool:
    """Not a boundary itself: what a client chooses stands nowhere in its content, still less with a part's head."""
    if b"--" + BOUNDARY in value and b"Content-Disposition" in value:
        return False
    return re.search(rb"\r\n--" + BOUNDARY + rb"(--)?[ \t]*(\r\n|\Z)", b"\r\n" + value + b"\r\n") is None


@given(
    st.lists(_other.filter(lambda each: _is_content(each[1])), max_size=5),
    st.integers(0, 5),
    _content.filter(_is_content),
    examples=(150, 1500),
)
def test_r8_whatever_stands_around_it_arrives(others, at, epilogue):
    parts = [part(*each) for each in others]
    parts.insert(min(at, len(parts)), part(b"model", b"route"))
    body = form(*parts, epilogue=b"\r\n" + epilogue)
    before = form(*parts[: min(at, len(others))])[: -len(BOUNDARY) - 6]
    start = len(before) + len(b"--%s\r\n%s\r\n\r\n" % (BOUNDARY, parts[min(at, len(others))][0]))
    assert body[start : start + 5] == b"route"
    assert read(body).model == "route"
    assert sent(body) == body[:start] + b"real" + body[start + 5 :]


@given(
    st.lists(
        st.binary(max_size=6) | st.sampled_from([*LOOK_ALIKES, b"--" + BOUNDARY + b"\r\n", b"--" + BOUNDARY + b"--"]),
        max_size=12,
    ).map(b"".join),
    examples=(150, 1500),
)
def test_r8_s7_whatever_bytes_come_they_are_read_or_refused(body):
    try:
        call = read(body)
    except BadRequest:
        pass
    else:
        assert call.model


@pytest.mark.parametrize(
    ("value", "stream"),
    [(b"true", True), (b"True", True), (b"1", True), (b"on", True), (b" true ", True), (b"false", False), (b"", False)],
)
def test_r8_the_field_stream_asks_for_a_stream(value, stream):
    assert read(form(FILE, part(b"stream", value), MODEL)).stream is stream
    assert read(form(FILE, MODEL)).stream is False


@pytest.mark.parametrize(
    "kind",
    [
        b'multipart/form-data; boundary="' + BOUNDARY + b'"',
        b"Multipart/Form-Data;boundary=" + BOUNDARY,
        b"multipart/form-data; charset=utf-8; Boundary=" + BOUNDARY + b" ",
    ],
)
def test_r8_a_boundary_is_named_in_several_ways(kind):
    assert read(form(MODEL), kind).model == "route"


def test_r8_a_boundary_may_have_spaces_behind_it_and_a_value_may_be_missing():
    body = form(FILE, MODEL).replace(b"\r\nContent-Disp", b" \t\r\nContent-Disp", 1)
    assert read(body).model == "route"
    nothing = b'--%s\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n--%s\r\n' % (BOUNDARY, BOUNDARY)
    assert read(nothing + form(MODEL).split(b"\r\n", 1)[1]).model == "route"


# What is refused


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([MODEL, FILE, MODEL], "two fields 'model'"),
        ([MODEL, part(b"model", b"other")], "two fields 'model'"),
        ([MODEL, part(b"stream", b"true"), part(b"stream", b"false")], "two fields 'stream'"),
        ([MODEL, part(b"Model", b"other")], "'Model' must be written 'model'"),
        ([part(b"MODEL", b"other"), MODEL], "'MODEL' must be written 'model'"),
        ([MODEL, part(rb"mo\del", b"other")], "must be written 'model'"),
        ([part(b"model", b"route", b'; filename="a"')], "must be a plain value"),
        ([part(b"model", b"cm91dGU=", b"", b"\r\nContent-Transfer-Encoding: base64")], "must be a plain value"),
        ([part(b"model", b"")], "'model' must be a non-empty string"),
        ([part(b"model", b"\xff")], "'model' is not UTF-8"),
        ([part(b"model", b"x" * 20_000)], "'model' takes over"),
        ([FILE], "'model' is missing"),
        ([], "has no parts"),
        ([MODEL, (b"Content-Type: text/plain", b"x")], "head of part 2"),
        ([MODEL, (b'Content-Disposition: form-data; filename="x"', b"x")], "head of part 2"),
        ([MODEL, (b'Content-Disposition: form-data; name="x"; name="model"', b"x")], "head of part 2"),
        ([MODEL, (b"Content-Disposition: form-data; name*=utf-8''model", b"x")], "head of part 2"),
        ([MODEL, (b'Content-Disposition: form-data;\r\n name="model"', b"x")], "head of part 2"),
        (
            [MODEL, (b'Content-Disposition: form-data; name="x"\nContent-Disposition: form-data; name="model"', b"x")],
            "head of part 2",
        ),
        ([MODEL, (b'Content-Disposition: form-data; name="a\\"; name="model"', b"x")], "head of part 2"),
        ([MODEL, (b'Content-Disposition: form-data; name="x"; name*0="mo"; name*1="del"', b"x")], "head of part 2"),
        ([MODEL, (b"Content-Disposition: form-data; name=\"x\"; name*0*=utf-8''mod%65l", b"x")], "head of part 2"),
        (
            [MODEL, (rb'Content-Disposition: form-data; filename="a\\"; name="x"; z="; name=model; q="', b"x")],
            "head of part 2",
        ),
        ([MODEL, (b"Content-Disposition: form-data; name=<model>", b"x")], "'<model>' must be written 'model'"),
        ([MODEL, part(b"model[]", b"other")], "'model[]' must be written 'model'"),
        ([MODEL, part(b"'stream'", b"true")], "must be written 'stream'"),
        ([part(b"model", b"route", b'; filename*0="a"')], "must be a plain value"),
        ([MODEL, (b"X: " + b"y" * 9000, b"x")], "head of part 2"),
        ([MODEL, *[part(b"a", b"")] * 1000], "over 1000 parts"),
    ],
    ids=str,
)
def test_r8_what_could_be_read_in_two_ways_is_refused(parts, message):
    with pytest.raises(BadRequest, match=re.escape(message)):
        read(form(*parts))


HEAD = b'Content-Disposition: form-data; name="model"'
HIDDEN = {
    "line feeds": b"\n--%s\n%s\n\nother\n" % (BOUNDARY, HEAD),
    "carriage returns": b"\r--%s\r%s\r\rother" % (BOUNDARY, HEAD),
    "text behind it": b"\r\n--%sx\r\n%s\r\n\r\nother\r\n--%s--x" % (BOUNDARY, HEAD, BOUNDARY),
    "a vertical tab": b"\r\n--%s\v\r\n%s\r\n\r\nother" % (BOUNDARY, HEAD),
    "101 spaces": b"\r\n--%s%s\r\n%s\r\n\r\nother" % (BOUNDARY, b" " * 101, HEAD),
    "in a line": b"x--%s\r\n%s\r\n\r\nother" % (BOUNDARY, HEAD.lower()),
    "far before the head": b"\n--%s\n%s%s\n\nother\n" % (BOUNDARY, b"X: y\n" * 100_000, HEAD.upper()),
}


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_r8_no_part_that_another_reader_finds_is_hidden_in_content(hidden):
    """Starlette, Werkzeug, Python's email, Go, busboy or Tornado read each of these as a field ``model``."""
    for body in (
        form(part(b"prompt", b"x" + hidden), MODEL),
        form(MODEL, part(b"prompt", b"x" + hidden)),
        form(MODEL, preamble=hidden + b"\r\n"),
        form(MODEL, preamble=hidden.removeprefix(b"\n") + b"\r\n"),
        form(MODEL, epilogue=b"\r\n" + hidden),
        form(MODEL, epilogue=b"\r\n" + b"x" * 1_048_570 + hidden),
    ):
        with pytest.raises(BadRequest, match="choose another boundary"):
            read(body)


@pytest.mark.parametrize(
    "content", [HEAD, b"\n--" + BOUNDARY + b"\n", b"--other\r\n" + HEAD + b"\r\n\r\nx\r\n--other--"]
)
def test_r8_a_form_within_a_form_is_content(content):
    body = form(part(b"prompt", content), MODEL)
    assert sent(body) == body.replace(b"\r\n\r\nroute\r\n--", b"\r\n\r\nreal\r\n--")


@pytest.mark.parametrize(
    "body", [b"", b"{}", form(MODEL)[:-20], form(MODEL, boundary=b"other"), form(MODEL).replace(b"\r\n", b"\n")]
)
def test_r8_a_form_without_its_last_boundary_is_refused(body):
    with pytest.raises(BadRequest, match="last boundary"):
        read(body)


@pytest.mark.parametrize(
    "kind",
    [b"multipart/form-data", b"multipart/form-data; boundary=", b'multipart/form-data; boundary="a', b"multipart/form-data; boundary=a; boundary=b", b"multipart/form-data; boundary=" + b"x" * 300, b"multipart/form-data; boundary=\xff", named() + b"; boundary*=utf-8''x", named() + b"; boundary*0=x", b"multipart/form-data; xboundary=x; boundary=" + BOUNDARY, b"multipart/form-data; boundary=<a>", b"multipart/form-data; boundary=a,b"],
)  # fmt: skip
def test_r8_a_boundary_must_be_named(kind):
    with pytest.raises(BadRequest, match="no usable boundary"):
        read(form(MODEL), kind)


@pytest.mark.parametrize("charset", [b"utf-7", b'"utf-16"', b"latin-1", b"", b"*0=utf-7"])
def test_r8_a_form_has_no_charset_in_which_another_reader_finds_other_names(charset):
    """Starlette decodes the names of the fields so: in UTF-7 ``+AG0-odel`` is ``model``."""
    kind = named() + b"; charset" + (charset if charset[:1] == b"*" else b"=" + charset)
    with pytest.raises(BadRequest, match="no charset but utf-8"):
        read(form(MODEL), kind)


@pytest.mark.parametrize("junk", [b"charset" * 2000, b"boundary" * 2000, b'; boundary="' * 1300, b"charset " * 2000])
def test_r8_b3_a_long_content_type_is_read_at_once(junk):
    began = time.thread_time()
    with pytest.raises(BadRequest):
        read(b"", named() + b"; " + junk)
    assert time.thread_time() - began < 0.05


@pytest.mark.parametrize("path", [TRANSCRIPTIONS, VARIATIONS])
def test_r8_json_is_refused_where_a_form_is_needed(path):
    with pytest.raises(BadRequest, match="must be a form"):
        read(b'{"model": "route"}', b"application/json", path)


def test_r8_images_are_edited_by_json_too():
    body = b'{"model":"route","prompt":"x","n":2,"stream":true}'
    call = read(body, b"application/json", EDITS)
    assert (call.model, call.stream, call.results) == ("route", True, 2)
    assert sent(body, b"application/json", path=EDITS) == body.replace(b"route", b"real")


# At the gateway


def upload(body: bytes, path: str = TRANSCRIPTIONS, kind: bytes | None = None, **headers: str) -> bytes:
    named_as = (named() if kind is None else kind).decode("latin-1")
    return request(body, f"/v1/{path}", headers={**AUTH, "Content-Type": named_as, **headers})


def pieces_of(data: bytes, size: int = 65536) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def test_r8_the_provider_gets_the_form_with_its_length_and_type():
    world = MemoryGateway()
    body = form(FILE, MODEL)
    client = world.open()
    client.say(upload(body))
    world.turns()
    got = world.doors["p1"].wire.take()
    line, _, rest = got.partition(b"\r\n")
    assert line == b"POST /v1/audio/transcriptions HTTP/1.1"
    headers, _, form_sent = rest.partition(b"\r\n\r\n")
    assert form_sent == body.replace(b"\r\nroute\r\n", b"\r\nmodel-of-p1\r\n")
    assert b"Content-Type: " + named() + b"\r\n" in headers
    assert b"ontent-Length: %d" % len(form_sent) in headers or b"ontent-length: %d" % len(form_sent) in headers.lower()
    world.doors["p1"].wire.say(head(Content_Length=str(len(TEXT))) + TEXT)
    assert client.take().endswith(TEXT)
    assert world.site.bodies.under_way == 0


@pytest.mark.parametrize("coding", [None, "gzip"])
def test_r8_a_chunked_upload_is_read_and_so_is_a_compressed_one(coding):
    world = MemoryGateway()
    body = form(FILE, MODEL)
    given = gzip.compress(body) if coding else body
    client = world.open()
    headers = {**AUTH, "Content-Type": named().decode(), "Transfer-Encoding": "chunked"}
    client.say(
        request(
            None, "/v1/audio/transcriptions", headers={**headers, **({"Content-Encoding": coding} if coding else {})}
        )
    )
    for piece in pieces_of(given, 50):
        client.say(b"%x\r\n%s\r\n" % (len(piece), piece))
    client.say(b"0\r\n\r\n")
    world.turns()
    assert world.doors["p1"].wire.take().endswith(body.replace(b"\r\nroute\r\n", b"\r\nmodel-of-p1\r\n"))


def test_r8_two_models_are_400_at_the_gateway():
    world = MemoryGateway()
    client = world.open()
    client.say(upload(form(MODEL, FILE, MODEL)))
    world.turns()
    told = client.take()
    assert told.startswith(b"HTTP/1.1 400 ")
    assert error_of(told)["param"] == "model"
    assert not world.doors["p1"].wires


def test_r8_b3_no_input_holds_up_the_event_loop():
    """25 MB of what looks like a boundary, or like the beginning of one, and still each step is short."""
    endpoint = ENDPOINTS[TRANSCRIPTIONS]
    for pattern in (
        b"\r\n",
        b"\r\n--" + BOUNDARY[:-1],
        b"\r\n--" + BOUNDARY + b"x",
        b"-",
        b"c" * 999 + b"\n--" + BOUNDARY,
    ):
        body = form(part(b"file", pattern * (25_000_000 // len(pattern))), MODEL)
        body += pattern * (7_000_000 // len(pattern))
        steps = endpoint.read(RawRequest(endpoint, body, content_type=named()))
        longest, began = 0.0, time.thread_time()
        for _ in steps:
            longest, began = max(longest, time.thread_time() - began), time.thread_time()
        assert longest < 0.05


@ensureDeferred
async def test_r8_25_mb_of_audio_fall_through_to_a_second_provider(world):
    """``model`` stands behind them; the first provider takes them all and is overloaded, inside a 200."""
    audio = b"\xff\xfb\x90\r\n--" * (25_000_000 // 8)
    body = form(part(b"file", audio, b'; filename="a.mp3"'), MODEL)
    overloaded = answer(200, json.dumps({"error": {"message": "overloaded", "type": "server_error"}}).encode())
    first, second = world.provider(overloaded), world.provider(answer(200, TEXT))
    gateway = world.gateway(first, second, timeout=20)
    client = await gateway.send(upload(body))
    got = await bounded(client.done, 20)
    assert (got.status, got.body, got.headers["x-aigw-provider"]) == (200, TEXT, "p2")
    for number, provider in ((1, first), (2, second)):
        (seen,) = provider.requests
        assert seen.body == body.replace(b"\r\nroute\r\n", b"\r\nmodel-%d\r\n" % number)
    assert KEY not in json.dumps(world.records)
