"""C16, B6, S21: what a client without a right key can do to the look-up of keys: nothing, and the answer is clear."""

from __future__ import annotations

import hashlib
import time

import pytest

from aigw.access.refused_keys import MAX_LINES
from aigw.telemetry import notices
from tests.memory import MemoryGateway, error_of
from tests.properties import times
from tests.test_keys import ALICE, BOB, named, sha

BEARER = f"Authorization: Bearer {ALICE}"
NONE = (401, "has no API key; send it as 'Authorization: Bearer KEY'", 0)
OTHER_FORM = (401, "no API key: the header Authorization is not of the form 'Bearer KEY'", 0)
WRONG = (401, "The API key is wrong", 1)
INVALID = (400, "not valid HTTP/1.1", 0)
TWICE = (400, "is repeated; send it once", 0)
LARGE = (431, "longer than 16384 bytes", 0)

#   what is sent                     the headers                                             status, a part of the message, wrong keys
SENT = {
    "nothing":                       ([],                                                    NONE),
    "no token":                      (["Authorization: Bearer"],                             NONE),
    "an empty token":                (["Authorization: Bearer "],                            NONE),
    "an empty header":               (["Authorization:"],                                    NONE),
    "empty headers of all kinds":    (["Authorization: Bearer ", "X-Api-Key:", "Api-Key:"],  NONE),
    "a key without a scheme":        ([f"Authorization: {ALICE}"],                           OTHER_FORM),
    "another scheme":                ([f"Authorization: Basic {ALICE}"],                     OTHER_FORM),
    "a tab behind the scheme":       ([f"Authorization: Bearer\t{ALICE}"],                   OTHER_FORM),
    "a key in Proxy-Authorization":  ([f"Proxy-Authorization: Bearer {ALICE}"],              NONE),
    "a key in a cookie":             ([f"Cookie: aigw={ALICE}; key={ALICE}"],                NONE),
    "an underscore":                 ([f"x_api_key: {ALICE}"],                               NONE),
    "the hash of a key":             ([f"Authorization: Bearer {sha(ALICE)}"],               WRONG),
    "its bytes":                     ([b"X-Api-Key: " + hashlib.sha256(ALICE.encode()).digest().hex().upper().encode()], WRONG),
    "other letters":                 ([f"X-Api-Key: {ALICE.upper()}"],                       WRONG),
    "one character less":            ([f"X-Api-Key: {ALICE[:-1]}"],                          WRONG),
    "one character more":            ([f"X-Api-Key: {ALICE}a"],                              WRONG),
    "quotes":                        ([f'Authorization: Bearer "{ALICE}"'],                  WRONG),
    "two tokens":                    ([f"{BEARER} {ALICE}"],                                 WRONG),
    "a list":                        ([f"{BEARER}, Bearer {ALICE}"],                         WRONG),
    "letters that are not ASCII":    (["Authorization: Bearer ключ".encode()],               WRONG),
    "bytes that are not UTF-8":      ([b"Authorization: Bearer \xff\xfe"],                   WRONG),
    "16,000 characters":             (["X-Api-Key: " + "a" * 16_000],                        WRONG),
    "1 MB":                          (["Authorization: Bearer " + "a" * 1_000_000],          LARGE),
    "1 MB in Api-Key":               (["Api-Key: " + "a" * 1_000_000],                       LARGE),
    "a NUL":                         ([f"{BEARER}\0"],                                       INVALID),
    "a folded line":                 (["Authorization: Bearer", f"  {ALICE}"],               INVALID),
    "two right headers":             ([BEARER, BEARER],                                      TWICE),
    "a wrong one behind a right one": ([BEARER, "Authorization: Bearer wrong"],              TWICE),
    "a right one behind a wrong one": (["Authorization: Bearer wrong", BEARER],              TWICE),
    "X-Api-Key twice":               ([f"X-Api-Key: {ALICE}", f"X-Api-Key: {BOB}"],          TWICE),
    "the keys of two callers":       ([BEARER, f"Api-Key: {BOB}"],                           (400, "hold the keys of two different callers", 0)),
    "three, of two callers":         ([BEARER, f"Api-Key: {ALICE}", f"X-Api-Key: {BOB}"],    (400, "hold the keys of two different callers", 0)),
    "a wrong one beside a right one": ([BEARER, "Api-Key: wrong"],                           WRONG),
    "two wrong ones":                (["Api-Key: wrong", "X-Api-Key: wrong too"],            (401, "The API key is wrong", 2)),
    "a key that ended beside a right one": ([BEARER, "Api-Key: ended-key-of-alice"],         (401, "The API key has expired", 0)),
}  # fmt: skip

RIGHT = {
    "a bearer": [BEARER],
    "another letter case": [f"AUTHORIZATION: bEaReR {ALICE}"],
    "more spaces": [f"Authorization:   Bearer    {ALICE}  "],
    "the same key in all headers": [BEARER, f"Api-Key: {ALICE}", f"X-Api-Key: {ALICE}"],
    "an empty header beside it": [BEARER, "X-Api-Key:"],
    "the password of a proxy beside it": [f"X-Api-Key: {ALICE}", "Authorization: Basic dXNlcjpwYXNz"],
}


def world() -> MemoryGateway:
    ended = named("alice", "ended-key-of-alice", expires="2020-01-01")
    return MemoryGateway(top={"keys": [named("alice", ALICE), named("bob", BOB), ended]})


def asked(gateway: MemoryGateway, lines, host: str = "127.0.0.1") -> bytes:
    head = [
        b"GET /v1/models HTTP/1.1",
        b"Host: x",
        *(each if isinstance(each, bytes) else each.encode() for each in lines),
    ]
    client = gateway.open(host)
    client.say(b"\r\n".join([*head, b"", b""]))
    return client.take()


@pytest.mark.parametrize("what", SENT)
def test_c16_what_is_no_right_key_is_refused_and_the_error_is_clear(what):
    gateway = world()
    lines, (status, message, wrong) = SENT[what]
    answer = asked(gateway, lines)
    error = error_of(answer)
    assert int(answer.split()[1]) == status
    assert message in error["message"]
    assert gateway.site.refused_keys.total == wrong
    assert ALICE not in error["message"]


@pytest.mark.parametrize("what", RIGHT)
def test_c16_a_right_key_may_be_written_so(what):
    assert asked(world(), RIGHT[what]).startswith(b"HTTP/1.1 200 ")


@times(500, 2000)
def test_c16_many_wrong_keys_a_second_cost_little_and_delay_no_right_one(monkeypatch, times):
    lines = []
    monkeypatch.setattr(notices.logs, "warn", lambda *_, **fields: lines.append(fields))
    gateway = world()
    began = time.process_time()
    answers = [asked(gateway, [f"X-Api-Key: wrong-{number}"]) for number in range(times)]
    took = time.process_time() - began
    assert sum(map(bool, answers)) == times - 200, "200 answers wait, those beyond them go out at once"
    assert asked(gateway, [BEARER]).startswith(b"HTTP/1.1 200 ")
    assert len(lines) <= MAX_LINES
    assert gateway.site.refused_keys.total == times
    assert took < times / 200
    gateway.clock.advance(10)
    assert not gateway.site.refused_keys._waiting
