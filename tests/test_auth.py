"""Credentials (B6), and keys that cannot be shown by accident (B9)."""

import contextlib
import copy
import hashlib
import hmac
import json
import marshal
import pickle
import pprint
import string
import traceback

import msgspec
import pytest
import yaml
from twisted.logger import formatEvent

from aigw.access.keys import Keys
from aigw.errors import BadRequest, GatewayError, Unauthorized, WrongKey
from aigw.secret import Secret
from aigw.settings.callers import Caller

KEY = "gw-Key-1234"
ANN = Caller("ann", Secret(KEY))
BOB = Caller("bob", Secret('bob "\\" key'))
EVE = Caller("eve", Secret("eve-key"))
EVERYBODY = (ANN, BOB, EVE)

KNOWN = [
    # X-Api-Key, Authorization, who it is
    (b"gw-Key-1234", None, ANN),
    (b'bob "\\" key', None, BOB),
    (None, b"Bearer gw-Key-1234", ANN),
    (None, b"bearer gw-Key-1234", ANN),
    (None, b"BEARER gw-Key-1234", ANN),
    (None, b"Bearer   gw-Key-1234  ", ANN),
    (None, b'Bearer bob "\\" key', BOB),
    (None, b"Bearer eve-key", EVE),
    (b"gw-Key-1234", b"Bearer gw-Key-1234", ANN),
    (b"gw-Key-1234", b"Basic Zm9vOmJhcg==", ANN),
    (b"gw-Key-1234", b"", ANN),
    (b"", b"Bearer gw-Key-1234", ANN),
]

ONE_IS_WRONG = [
    # X-Api-Key, Authorization, how many are wrong
    (b"gw-Key-1234", b"Bearer wrong", 1),
    (b"wrong", b"Bearer gw-Key-1234", 1),
    (b"\xff\xfe", b"Bearer gw-Key-1234", 1),
    (b"wrong", b"Bearer wrong", 2),
    (b"wrong", b"Bearer other", 2),
    (b"wrong", None, 1),
    (None, b"Bearer gw-Key-1234, Bearer gw-Key-1234", 1),
    (b"gw-Key-1234, gw-Key-1234", None, 1),
]

MISSING = [
    # X-Api-Key, Authorization
    (None, None),
    (b"", None),
    (None, b""),
    (b"", b""),
    (None, b"Bearer"),
    (None, b"Bearer "),
    (None, b"Bearer    "),
    (b"", b"Bearer "),
    (None, b"gw-Key-1234"),
    (None, b"Basic gw-Key-1234"),
    (None, b"Token gw-Key-1234"),
    (None, b"Bearergw-Key-1234"),
    (None, b" Bearer gw-Key-1234"),
]

WRONG = [
    b"gw-Key-123",
    b"gw-Key-12345",
    b"GW-KEY-1234",
    b"gw-Key-1234\x00",
    b"gw-Key-1234\xff",
    b"\xff\xfe\x00",
    "ключ".encode(),
    b"***",
    b"ann",
    b"x" * 100_000,
]


@pytest.fixture(autouse=True)
def failures():
    """In place of conftest's, which collects garbage after each test: nothing here uses Twisted."""


@pytest.mark.parametrize(("api_key", "authorization", "caller"), KNOWN)
def test_b6_a_key_in_either_header_is_known(api_key, authorization, caller):
    assert Keys(EVERYBODY).authenticate(api_key, authorization) is caller


@pytest.mark.parametrize(("api_key", "authorization"), MISSING)
def test_b6_no_key_is_401_and_says_how_to_send_one(api_key, authorization):
    refusal = refused(api_key, authorization)
    assert "The request has no API key" in refusal.message
    assert "Authorization: Bearer KEY" in refusal.message
    assert "X-Api-Key: KEY" in refusal.message


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("places", ["x-api-key", "authorization", "both"])
def test_b6_a_wrong_key_is_401(key, places):
    api_key = None if places == "authorization" else key
    authorization = None if places == "x-api-key" else b"Bearer " + key
    assert "The API key is wrong" in refused(api_key, authorization).message


@pytest.mark.parametrize(("api_key", "authorization", "wrong"), ONE_IS_WRONG)
def test_b6_one_wrong_key_is_401_whatever_stands_beside_it(api_key, authorization, wrong):
    refusal = refused(api_key, authorization)
    assert isinstance(refusal, WrongKey)
    assert refusal.tried == wrong


@pytest.mark.parametrize(("one", "other"), [(ANN, EVE), (EVE, ANN), (BOB, ANN)])
def test_b6_the_keys_of_two_callers_are_400(one, other):
    with pytest.raises(BadRequest, match="two different callers"):
        Keys(EVERYBODY).authenticate(one.key.reveal().encode(), b"Bearer " + other.key.reveal().encode())


@pytest.mark.parametrize(("api_key", "authorization"), MISSING)
def test_b6_s20_no_key_is_no_wrong_one(api_key, authorization):
    assert not isinstance(refused(api_key, authorization), WrongKey)


def test_b6_nobody_is_known_where_there_is_no_caller():
    with pytest.raises(Unauthorized):
        Keys(()).authenticate(KEY.encode(), None)


def test_b6_b9_a_refusal_quotes_neither_what_was_offered_nor_a_key():
    refusal = refused(b"offered-key", b"Bearer offered-token")
    told = repr((refusal, refusal.message, refusal.param, refusal.headers, refusal.details))
    assert not [word for word in ("offered", KEY, "eve-key") if word in told]


@pytest.mark.parametrize(
    ("api_key", "authorization", "offered"),
    [
        (b"gw-Key-1234", None, [b"gw-Key-1234"]),
        (b"eve-key", None, [b"eve-key"]),
        (b"wrong", None, [b"wrong"]),
        (None, b"Bearer wrong", [b"wrong"]),
        (b"gw-Key-1234", b"Bearer wrong", [b"gw-Key-1234", b"wrong"]),
        (b"wrong", b"Bearer eve-key", [b"wrong", b"eve-key"]),
        (b"gw-Key-1234", b"Bearer eve-key", [b"gw-Key-1234", b"eve-key"]),
    ],
)
def test_b6_only_hashes_are_compared_and_in_constant_time(monkeypatch, api_key, authorization, offered):
    compared = []
    compare_digest = hmac.compare_digest

    def counting(one, other):
        compared.append((one, other))
        return compare_digest(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    with contextlib.suppress(GatewayError):
        Keys(EVERYBODY).authenticate(api_key, authorization)
    hashes = [hashlib.sha256(key).digest() for key in offered if key != b"wrong"]
    with_hash = [(one, other) for one, other in compared if len(other) == 32]
    # A key that is sent alone is compared with each api_key first, until one is equal; there is one, or none.
    plain = [(one, other) for one, other in compared if len(other) != 32]
    assert all(other == offered[0] for _, other in plain)
    found = any(one == other for one, other in plain)
    assert plain == [] if len(offered) == 2 else found or len(plain) == len(EVERYBODY)
    assert with_hash == ([] if found else [(each, each) for each in hashes]), "what is unknown is compared with no hash"


SHOWN = {
    "repr": repr,
    "str": str,
    "ascii": ascii,
    "format": format,
    "format with a spec": lambda value: f"{getattr(value, 'key', value):>40}",
    "f-string": lambda value: f"{value} {value!s} {value!r} {value!a}",
    "str.format": lambda value: "{} {!r} {!s}".format(value, value, value),  # noqa: UP032
    "%s": lambda value: "%s" % (value,),  # noqa: UP031
    "%r": lambda value: "%r" % (value,),  # noqa: UP031
    "%a": lambda value: "%a" % (value,),  # noqa: UP031
    "Template": lambda value: string.Template("$value").substitute(value=value),
    "in a list": lambda value: str([value]),
    "in a dict": lambda value: f"{ {'key': value} }",
    "pprint": pprint.pformat,
    "in an exception": lambda value: f"{ValueError(value)} {ValueError(value)!r}",
    "in a traceback": lambda value: "".join(traceback.format_exception(ValueError("bad", value))),
    "in a Twisted event": lambda value: formatEvent({"log_format": "{value} {value!r}", "value": value}),
    "json, told to use str": lambda value: json.dumps([value], default=str),
    "msgspec, told to use str": lambda value: (
        msgspec.json.encode(value, enc_hook=str).decode() + repr(msgspec.to_builtins(value, enc_hook=str))
    ),
}

REFUSED = {
    **{
        f"pickle {protocol}": lambda value, protocol=protocol: pickle.dumps(value, protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": lambda value: copy.copy(getattr(value, "key", value)),
    "deepcopy": copy.deepcopy,
    "marshal": marshal.dumps,
    "json": json.dumps,
    "json of its attributes": lambda value: json.dumps(value, default=vars),
    "msgspec.json": msgspec.json.encode,
    "msgspec.msgpack": msgspec.msgpack.encode,
    "msgspec.yaml": msgspec.yaml.encode,
    "msgspec.to_builtins": msgspec.to_builtins,
    "yaml.safe_dump": yaml.safe_dump,
    "yaml.dump": yaml.dump,
}

HOLDERS = {"a Secret": ANN.key, "a Caller": ANN}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("way", SHOWN)
def test_b9_a_secret_shows_as_stars(way, holder):
    shown = SHOWN[way](HOLDERS[holder])
    assert KEY not in shown
    assert "***" in shown


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("way", REFUSED)
def test_b9_a_secret_cannot_be_encoded(way, holder):
    with pytest.raises((TypeError, ValueError, yaml.YAMLError)) as refusal:
        REFUSED[way](HOLDERS[holder])
    assert KEY not in "".join(traceback.format_exception(refusal.value))


def test_b9_a_secret_is_revealed_only_when_asked():
    assert ANN.key.reveal() == KEY
    assert KEY not in repr(dir(ANN.key))


def test_secrets_are_equal_by_key_and_to_nothing_else():
    assert Secret("a") == Secret("a")
    assert hash(Secret("a")) == hash(Secret("a"))
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"


def refused(api_key, authorization):
    """The error for these headers, after a check of what the client is told beside its message."""
    with pytest.raises(Unauthorized) as caught:
        Keys(EVERYBODY).authenticate(api_key, authorization)
    refusal = caught.value
    assert (refusal.status, refusal.type, refusal.code) == (401, "invalid_request_error", "invalid_api_key")
    assert refusal.headers == {"WWW-Authenticate": "Bearer"}
    return refusal
