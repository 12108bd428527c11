"""B9: a provider's key that the provider repeats, in whatever form it writes it."""

from __future__ import annotations

import json
import re
import time
from base64 import b64encode, encodebytes, urlsafe_b64encode
from random import Random
from urllib.parse import quote

import pytest
from hypothesis import strategies as st

from aigw.key_forms import SHORTEST, KeyForms, Text, without
from aigw.secret import KeySearch, Secret
from tests.memory import MemoryGateway, body_of, error_of
from tests.properties import given, grid
from tests.providers import LAST_CHUNK, STREAM, STREAM_HEAD, chunk, completion, event, head
from tests.test_bytes import unchunked

KEY = "sk-Proj_x/y+z~7Yv0Q?>kk-0123456789abcdefXYZ"


def percent(text: str, lower: bool = False) -> str:
    return "".join(f"%{ord(each):02{'x' if lower else 'X'}}" for each in text)


def base64(text: str, url: bool = False) -> str:
    return (urlsafe_b64encode if url else b64encode)(text.encode()).decode()


FORMS = {
    "plain": lambda key: key,
    "as JSON in JSON": lambda key: json.dumps(json.dumps({"message": f"bad {key}"})),
    "each character as JSON may write it": lambda key: "".join(f"\\u{ord(each):04x}" for each in key),
    "the same in capitals": lambda key: "".join(f"\\u{ord(each):04X}" for each in key),
    "quoted twice": lambda key: "".join(f"\\\\u{ord(each):04x}" for each in key),
    "as Python writes bytes": lambda key: "".join(f"\\x{ord(each):02x}" for each in key),
    "slashes as PHP writes them": lambda key: key.replace("/", "\\/"),
    "hexadecimal": lambda key: key.encode().hex(),
    "HEXADECIMAL": lambda key: key.encode().hex().upper(),
    "hexadecimal in words": lambda key: key.encode().hex(" ", 2),
    "hexadecimal of a header": lambda key: f"Authorization: Bearer {key}\r\n".encode().hex(),
    "URL": lambda key: quote(key, safe=""),
    "URL, in lower case": lambda key: re.sub("%..", lambda each: each[0].lower(), quote(key, safe="")),
    "URL, each character": percent,
    "URL, each character, in lower case": lambda key: percent(key, lower=True),
    "URL, every other character": lambda key: "".join(e if n % 2 else percent(e) for n, e in enumerate(key)),
    "URL, twice": lambda key: quote(quote(key, safe=""), safe=""),
    "URL, each character, four times": lambda key: percent(key).replace("%", "%252525"),
    **{f"base64 behind {n}": lambda key, n=n: base64("x" * n + key) for n in range(4)},
    **{f"base64 behind {n}, and more": lambda key, n=n: base64("\u00ff" * n + key + "/?>") for n in range(4)},
    **{f"base64 for URLs behind {n}": lambda key, n=n: base64("?" * n + key + "~~~~", url=True) for n in range(4)},
    "base64 of a header": lambda key: base64(f"Bearer {key}"),
    "base64 of user and key": lambda key: f"Basic {base64(f'user:{key}')}",
    "base64 without its end": lambda key: base64(f"api:{key}").rstrip("="),
    "base64 in lines": lambda key: encodebytes(b"x" * 50 + key.encode()).decode(),
    "base64 in lines, in JSON": lambda key: json.dumps(encodebytes(b"x" * 50 + key.encode()).decode()),
    "base64 as .NET writes it in JSON": lambda key: base64(f"?>{key}?>").replace("+", "\\u002B"),
    "base64 as PHP writes it in JSON": lambda key: base64(f"??{key}??").replace("/", "\\/"),
    "base64 in a URL": lambda key: quote(base64(f"??{key}??>"), safe=""),
}
KEYS = {
    "a usual one": KEY,
    "the shortest": "k3y-56_8",
    "with a backslash and a quote": r'sk-"back\slash\"-+%-key',
    "with words in it": "my own pass phrase",
}


@grid("form", "key")
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("form", FORMS)
def test_b9_a_key_is_found_and_blacked_out_in_each_form(form, key):
    written = FORMS[form](KEYS[key])
    for text in (written, f"Incorrect key: <{written}>, check it", f"{written} {written}"):
        secrets = [Secret("another-key-1234"), Secret(KEYS[key]), Secret("a-third-key-5678")]
        assert KeySearch(secrets).are_in_any_form(text.encode())
        hidden = KeySearch(secrets).hide_any_form(text)
        assert "***" in hidden
        assert not KeySearch(secrets).are_in_any_form(hidden.encode())
        assert not left_of(KEYS[key], hidden)
        if text.startswith("Incorrect"):
            assert hidden.startswith("Incorrect key: <")
            assert hidden.endswith(">, check it")


@grid("form", "key")
@pytest.mark.parametrize("key", ["%25%2541+/~?a\\u0041\\x41==", r"sk-\n\\t-%41", "%%%%%%%%%%", "\\\\\\\\\\\\\\\\\\"])
@pytest.mark.parametrize("form", [form for form in FORMS if not form.startswith(("URL", "as Python"))])
def test_b9_a_key_that_looks_like_escapes_is_found_too(form, key):
    assert KeySearch([Secret(key)]).are_in_any_form(FORMS[form](key).encode())
    assert "***" in KeySearch([Secret(key)]).hide_any_form(FORMS[form](key))


def left_of(key: str, text: str) -> list[str]:
    """Which eight bytes of the key can still be read out of ``text``, encoded as they may be."""
    parts = {key[at : at + 8] for at in range(len(key) - 7)}
    return [part for part in parts if next(KeyForms(part).spans(Text(text)), None) or part in text]


@given(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=SHORTEST, max_size=60),
    st.binary(max_size=20),
    st.binary(max_size=20),
    examples=(80, 1000),
)
def test_b9_a_key_of_any_kind_is_found_within_any_bytes(key, before, behind):
    data = before + key.encode() + behind
    for encoded in (b64encode(data), urlsafe_b64encode(data), data.hex().encode(), data.hex().upper().encode()):
        assert KeySearch([Secret(key)]).are_in_any_form(b"told: " + encoded)
        assert not KeySearch([Secret(key)]).are_in_any_form(
            KeySearch([Secret(key)]).hide_any_form(encoded.decode()).encode()
        )
    if "\\" not in key and "%" not in key:
        assert KeySearch([Secret(key)]).are_in_any_form(quote(data, safe="").encode())


@given(st.text(max_size=60), st.text(max_size=60), examples=(100, 500))
def test_b9_what_stands_around_a_hidden_key_stays(before, behind):
    encoded = f"<{base64(KEY)}>"
    assert without([KeyForms(KEY)], before + encoded + behind) == f"{before}<***>{behind}"


@pytest.mark.parametrize("key", ["a", "%", "\\", "41", "aGk=", "sk-1234"])
@pytest.mark.parametrize("text", ["YQ== 61 %61", "73 6b 2d", "aGk= 6147 JTI1", "c2stMTIzNA==", "a4 1 s k-1234"])
def test_b9_a_short_key_has_no_forms_that_stand_anywhere_by_chance(key, text):
    assert KeySearch([Secret(key)]).are_in_any_form(text.encode()) == (key in text)
    assert KeySearch([Secret(key)]).hide_any_form(text) == text.replace(key, "***")


@pytest.mark.parametrize(
    "text", ["", "nothing", "%", "%zz \\", "\\u12", "%41" * 5, base64(KEY[:-1]), KEY[:-1], "é\u0130" * 9]
)
def test_b9_a_text_without_a_key_stays_the_very_same_object(text):
    assert KeySearch([Secret(KEY)]).hide_any_form(text) is text
    assert not KeySearch([Secret(KEY)]).are_in_any_form(text.encode())


SIZE = 64 * 1024
B64 = base64(f"Bearer {KEY}")
HOSTILE = {
    "hexadecimal": "0123456789abcdef" * 4096,
    "HEXADECIMAL": "ABCDEF01" * 8192,
    "percent signs": "%" * SIZE,
    "escaped percent signs": "%25" * (SIZE // 3),
    "one percent sign escaped for ever": "%" + "25" * (SIZE // 2),
    "escaped letters": "%41" * (SIZE // 3),
    "backslashes": "\\" * SIZE,
    "backslashes and letters": "\\a" * (SIZE // 2),
    "line ends in JSON": "\\n" * (SIZE // 2),
    "letters in JSON": "\\u0041" * (SIZE // 6),
    "backslashes in JSON": "\\u005c" * (SIZE // 6),
    "base64": "abcdefghijklmnopqrstuvwxyzABCDEF0123456789+/-_" * (SIZE // 46),
    "one letter": "a" * SIZE,
    "white space": "a " * (SIZE // 2),
    "not ASCII": "\u00e9%41" * (SIZE // 5),
    "nearly the key": KEY[:-1] * (SIZE // len(KEY)),
    "nearly the key in hexadecimal": KEY.encode().hex()[:-1] * (SIZE // 2 // len(KEY)),
    "nearly the key in base64": B64[:-4] * (SIZE // len(B64)),
    "nearly the key in a URL": percent(KEY[:-1]) * (SIZE // 3 // len(KEY)),
    "the key in hexadecimal": KEY.encode().hex() * (SIZE // 2 // len(KEY)),
    "the key in base64": B64 * (SIZE // len(B64)),
    "the key in a URL": percent(KEY) * (SIZE // 3 // len(KEY)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_b9_b3_a_hostile_text_is_read_in_little_time(kind):
    """64 KiB, the most that is read of a refusal, and 40 keys; 4 KiB where a key is blacked out."""
    r = Random(1)
    keys = [KEY, *("sk-" + "".join(r.choices("abcdefXYZ0123456789-_", k=40)) for _ in range(39))]
    secrets = [Secret(key) for key in keys]

    def seconds(run, *given) -> float:
        begun = time.process_time()
        run(*given)
        return time.process_time() - begun

    data = HOSTILE[kind].encode()
    assert min(seconds(KeySearch(secrets).are_in_any_form, data) for _ in range(3)) < 0.05
    assert min(seconds(KeySearch(secrets).hide_any_form, HOSTILE[kind][:4096]) for _ in range(3)) < 0.05
    quarter = min(seconds(KeySearch(secrets).hide_any_form, HOSTILE[kind][: SIZE // 4]) for _ in range(3))
    assert min(seconds(KeySearch(secrets).hide_any_form, HOSTILE[kind]) for _ in range(3)) < 10 * quarter + 0.05


# Through the whole gateway.

LONG_KEY = "sk-proj-Zx81_kQ-0123456789abcdef"
PROVIDERS = [
    {
        "name": "p1",
        "base_url": "http://p1/v1",
        "api_key": LONG_KEY,
        "headers": {"X-Auth": "Bearer tok-0123456789-abcdefgh"},
    },
    {"name": "p2", "base_url": "http://p2/v1", "api_key": "sk-other-Zx81_kQ-0123456789"},
]
SENT = [LONG_KEY, "tok-0123456789-abcdefgh"]


def status(code: int, body: bytes, **more: str) -> bytes:
    return head(code, Content_Length=str(len(body)), **more) + body


def error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


@grid("form", "key")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", SENT)
def test_f6_b9_the_attempts_show_a_key_in_no_form(form, key):
    world = MemoryGateway(top={"providers": PROVIDERS})
    client = world.ask()
    world.doors["p1"].wire.say(status(401, error(f"bad <{FORMS[form](key)}>")))
    world.doors["p2"].wire.say(status(200, error(f"bad <{FORMS[form](key)}>")))
    told = error_of(client.take())
    assert len(told["attempts"]) == 2
    for attempt in told["attempts"]:
        assert "***" in attempt["message"]
        assert not left_of(key, attempt["message"])
    assert not KeySearch([Secret(key)]).are_in_any_form(json.dumps(told).encode())


@pytest.mark.parametrize("at", range(4096 - 140, 4100, 7))
@pytest.mark.parametrize("form", ["hexadecimal", "base64 of a header", "URL, each character"])
def test_f6_b9_no_part_of_a_key_is_left_where_the_words_are_cut(form, at):
    world = MemoryGateway(steps=1, top={"providers": PROVIDERS[:1]})
    client = world.ask()
    before = (FORMS["URL, each character"](LONG_KEY) + " ") * 40  # it shrinks to a few letters, so that the end shows
    words = before[: at - at % 97].ljust(at) + FORMS[form](LONG_KEY)
    world.doors["p1"].wire.say(status(500, error(words)))
    assert not left_of(LONG_KEY, error_of(client.take())["attempts"][0]["message"])


@grid("form", "key")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", SENT)
def test_f5_b9_a_refusal_that_repeats_a_key_in_any_form_is_not_passed_on(form, key):
    world = MemoryGateway(top={"providers": PROVIDERS}, stop_on=[400])
    client = world.ask()
    world.doors["p1"].wire.say(status(400, error(f"bad {FORMS[form](key)}")))
    world.doors["p2"].wire.say(status(200, completion()))
    assert body_of(client.take()) == completion()
    assert world.records[0].provider == "p2"


@pytest.mark.parametrize("form", [form for form in FORMS if "lines" not in form and "header" not in form])
def test_f5_b9_a_header_of_a_refusal_that_repeats_a_key_is_not_passed_on(form):
    world = MemoryGateway(top={"providers": PROVIDERS}, stop_on=[400])
    client = world.ask()
    more = {"X_Request_Id": f"r-{FORMS[form](LONG_KEY)}", "OpenAI_Model": "m"}
    world.doors["p1"].wire.say(status(400, error("no"), **more))
    told = client.take().lower()
    assert told.startswith(b"http/1.1 400 ")
    assert b"openai-model: m" in told
    assert b"x-upstream-request-id" not in told


@pytest.mark.parametrize("key", SENT)
@pytest.mark.parametrize("cut", [1, 50, 10_000])
def test_a1_b9_a_key_is_taken_out_of_a_plain_answer(key, cut):
    answer = completion(f"your key is {key}, {key}")
    world = MemoryGateway(top={"providers": PROVIDERS})
    client = world.ask()
    provider = world.doors["p1"].wire
    wire = status(200, answer)
    for at in range(0, len(wire), cut):
        provider.say(wire[at : at + cut])
    told = client.take()
    assert body_of(told) == answer.replace(key.encode(), b"***")
    assert json.loads(body_of(told))["choices"][0]["message"]["content"] == "your key is ***, ***"
    assert b"content-length: %d\r\n" % len(body_of(told)) in told.lower()
    assert world.records[0].bytes_out == len(body_of(told))
    assert world.records[0].usage["total_tokens"] == 7


@pytest.mark.parametrize(
    "key",
    [
        "EMPTY",
        "ollama",
        "assistant",
        "sk-no-key-required",
        "12345678901234567890",
        "prompt_tokens_details",
        "a b 1" * 9,
    ],
)
def test_a3_b9_a_key_that_content_may_hold_by_chance_is_left_in_a_plain_answer(key):
    """What servers at home take for a key is a word; a number or a member's name may be one too."""
    answer = json.dumps({**json.loads(completion(f"it says {key}")), key: 12345678901234567890}).encode()
    world = MemoryGateway(top={"providers": [{**PROVIDERS[0], "api_key": key}, PROVIDERS[1]]})
    client = world.ask()
    world.doors["p1"].wire.say(status(200, answer))
    assert body_of(client.take()) == answer


def test_a3_b9_what_is_not_promised_passes_as_it_came():
    """The key of another provider, a key in another form, an answer over 1 MiB, a stream: the bytes are the provider's."""
    for content in (PROVIDERS[1]["api_key"], base64(LONG_KEY), f"{LONG_KEY} {'x' * 2**20}"):
        answer = completion(content)
        world = MemoryGateway(top={"providers": PROVIDERS})
        client = world.ask()
        world.doors["p1"].wire.say(status(200, answer))
        assert body_of(client.take()) == answer
    events = [STREAM[0], event({"content": LONG_KEY}), *STREAM[3:]]
    world = MemoryGateway(top={"providers": PROVIDERS})
    client = world.ask(stream=True)
    world.doors["p1"].wire.say(STREAM_HEAD + b"".join(map(chunk, events)) + LAST_CHUNK)
    assert unchunked(body_of(client.take())) == b"".join(events)


def test_b9_a_token_behind_a_scheme_is_a_key_of_its_own():
    assert Secret("Bearer tok-12345").token() == Secret("tok-12345")
    assert Secret("api-key   tok-12345").token() == Secret("tok-12345")
    for value in ("tok-12345", "Bearer short", "some longerwords", "Bearer two words-here", "Bearer"):
        assert Secret(value).token() is None
