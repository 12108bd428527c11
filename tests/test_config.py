"""The configuration file: B1, B2, B10 and what B11 says about listeners and certificates."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example
from hypothesis import strategies as st
from twisted.internet import reactor

from aigw.config import file_mode, loader
from aigw.config.model import Listener
from aigw.daemon.service import GatewayService
from aigw.errors import ConfigError
from aigw.settings.quoting import quoted, quoted_file
from aigw.settings.tls_files import TlsFiles
from tests.properties import given


@pytest.fixture(autouse=True)
def failures():
    """In place of conftest's, which collects garbage after each test: nothing here uses Twisted."""


ORIGINAL = """\
api_key: ${GATEWAY_API_KEY}  # Required: Gateway API key
port: 8080  # Optional, defaults to PORT env var or 8080
default_timeout: 300s  # Optional, used when route steps don't specify timeout

providers:
  - name: cerebras
    api_key: ${CEREBRAS_API_KEY}
    base_url: https://api.cerebras.ai/v1

  - name: openrouter
    api_key: ${OPENROUTER_API_KEY}
    base_url: https://openrouter.ai/api/v1

routes:
  - name: dynamic/n8n  # Must match request model exactly
    steps:
      - provider: cerebras
        model: gpt-oss-120b
        timeout: 300s  # Optional, uses default_timeout if omitted
        conflict_resolution: tools  # Optional: "tools" or "format"
      - provider: openrouter
        model: nvidia/nemotron-3-nano-30b-a3b:free
        timeout: 300s
        conflict_resolution: format
"""

KEYS = {
    "GATEWAY_API_KEY": "gateway-key-long-enough",
    "CEREBRAS_API_KEY": "cerebras-key",
    "OPENROUTER_API_KEY": "openrouter-key",
}

GOOD = {
    "api_key": "${GATEWAY_API_KEY}",
    "providers": [
        {"name": "one", "base_url": "https://one.example/v1", "api_key": "${CEREBRAS_API_KEY}"},
        {"name": "two", "base_url": "https://two.example/v1"},
        {"name": "spare", "base_url": "https://spare.example/v1"},
    ],
    "routes": [
        {"name": "r", "steps": [{"provider": "one", "model": "m1"}, {"provider": "two", "model": "m2"}]},
        {"name": "s", "steps": [{"provider": "two", "model": "m3"}]},
    ],
}

# Where a fragment of YAML goes.
TOP = ()
PROVIDER = ("providers", 0)
SPARE = ("providers", 2)  # that no step names
ROUTE = ("routes", 0)
STEP = ("routes", 0, "steps", 1)


def merged(place, fragment):
    """``GOOD`` with the members of ``fragment`` at ``place``; a value of ``DROP`` takes the member away."""
    tree = copy.deepcopy(GOOD)
    target = tree
    for name in place:
        target = target[name]
    target.update(yaml.safe_load(fragment))
    for name in [name for name, value in target.items() if value == "DROP"]:
        del target[name]
    return tree


def build(place=TOP, fragment="{}", environ=KEYS, folder="/cfg"):
    return loader.build(merged(place, fragment), environ, Path(folder))


def mistakes_of(call, *args, **kwargs):
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    return caught.value.mistakes


@pytest.fixture
def load(tmp_path):
    """Loads a text as a file; ``load.path`` is where it stands."""

    def load(text, environ=KEYS, mode=0o600):
        load.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        load.path.chmod(mode)
        return loader.load(load.path, environ)

    load.path = tmp_path / "config.yaml"
    return load


# B1: which file, and what it needs.


def test_b1_the_original_example_runs_unchanged(load):
    loaded = load(ORIGINAL)
    assert loaded.port == 8080
    assert [(caller.name, caller.key.reveal()) for caller in loaded.callers] == [("default", "gateway-key-long-enough")]
    assert [(p.name, p.base_url, p.api_key.reveal()) for p in loaded.providers.values()] == [
        ("cerebras", "https://api.cerebras.ai/v1", "cerebras-key"),
        ("openrouter", "https://openrouter.ai/api/v1", "openrouter-key"),
    ]
    assert list(loaded.routes) == ["dynamic/n8n"]
    assert [
        (s.number, s.provider.name, s.model, s.timeout, s.conflict_resolution)
        for s in loaded.routes["dynamic/n8n"].steps
    ] == [
        (1, "cerebras", "gpt-oss-120b", 300, "tools"),
        (2, "openrouter", "nvidia/nemotron-3-nano-30b-a3b:free", 300, "format"),
    ]
    assert (loaded.listeners, loaded.tls, loaded.warnings) == ((), None, ())


def test_b1_the_original_example_says_which_variables_it_misses(load):
    assert mistakes_of(load, ORIGINAL, {}) == [
        f"{load.path}, line 1: api_key: the environment variable GATEWAY_API_KEY is not set",
        f"{load.path}, line 7: providers[0].api_key: the environment variable CEREBRAS_API_KEY is not set",
        f"{load.path}, line 11: providers[1].api_key: the environment variable OPENROUTER_API_KEY is not set",
    ]


@pytest.mark.parametrize(
    ("present", "asked", "found"),
    [
        (["config.yaml", "etc.yaml", "mine.yaml"], "mine.yaml", "mine.yaml"),
        (["config.yaml", "etc.yaml"], None, "config.yaml"),
        (["config.yaml", "etc.yaml"], "", "config.yaml"),
        (["etc.yaml"], None, "etc.yaml"),
        (["config.yaml"], None, "config.yaml"),
    ],
)
def test_b1_the_file_is_the_one_asked_for_else_the_first_of_the_places(places, present, asked, found):
    for name in present:
        (places / name).write_text("x")
    assert loader.find(asked and str(places / asked)).resolve() == places / found


@pytest.mark.parametrize(
    ("present", "asked", "said"),
    [
        ([], None, ["config.yaml", "etc.yaml", "-c FILE"]),
        (["config.yaml", "etc.yaml"], "mine.yaml", ["mine.yaml", "-c FILE"]),
        (["config.yaml"], ".", ["-c FILE"]),
    ],
)
def test_b1_a_file_that_is_not_there_is_said_with_where_it_was_looked_for(places, present, asked, said):
    for name in present:
        (places / name).write_text("x")
    (mistake,) = mistakes_of(loader.find, asked and str(places / asked))
    assert not [word for word in said if word not in mistake]


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loader, "PLACES", ("config.yaml", str(tmp_path / "etc.yaml")))
    return tmp_path


def test_b1_the_places_are_those_of_the_original():
    assert loader.PLACES == ("config.yaml", "/etc/ai-gateway/config.yaml")


@pytest.mark.parametrize(
    ("fragment", "environ", "port"),
    [
        ("{}", {}, 8080),
        ("{}", {"PORT": ""}, 8080),
        ("{}", {"PORT": "9000"}, 9000),
        ("port: 7000", {"PORT": "9000"}, 7000),
        ("port: '7000'", {}, 7000),
        ("port: ${P}", {"P": "7000"}, 7000),
        ("port: 1", {}, 1),
        ("port: 65535", {}, 65535),
    ],
)
def test_b1_port(fragment, environ, port):
    assert build(TOP, fragment, {**KEYS, **environ}).port == port


def test_b1_defaults():
    loaded = build()
    step = loaded.routes["r"].steps[0]
    assert (step.timeout, step.connect_timeout, step.idle_timeout) == (300, 10, 120)
    assert (step.conflict_resolution, loaded.routes["r"].deadline) == (None, None)
    assert loaded.max_body == 32 * 1024 * 1024
    assert (loaded.providers["two"].api_key, loaded.providers["two"].headers) == (None, {})
    assert loaded.providers["two"].ca_file is None


# T1: step over route over default.


@pytest.mark.parametrize(
    ("limit", "top"), [("timeout", "default_timeout"), ("connect_timeout",) * 2, ("idle_timeout",) * 2]
)
@pytest.mark.parametrize(
    ("default", "route", "step", "expected"),
    [
        # default, route r, its second step -> r's first step, r's second step, the step of s
        (None, None, None, (..., ..., ...)),
        ("50s", None, None, (50, 50, 50)),
        (None, "40s", None, (40, 40, ...)),
        (None, None, "30s", (..., 30, ...)),
        ("50s", "40s", None, (40, 40, 50)),
        ("50s", None, "30s", (50, 30, 50)),
        (None, "40s", "30s", (40, 30, ...)),
        ("50s", "40s", "30s", (40, 30, 50)),
        ("1s", "20s", "3000s", (20, 3000, 1)),
    ],
)
def test_t1_a_limit_is_the_steps_else_the_routes_else_the_default(limit, top, default, route, step, expected):
    builtin = {"timeout": 300.0, "connect_timeout": 10.0, "idle_timeout": 120.0}
    tree = copy.deepcopy(GOOD)
    for entry, name, value in [
        (tree, top, default),
        (tree["routes"][0], limit, route),
        (tree["routes"][0]["steps"][1], limit, step),
    ]:
        if value:
            entry[name] = value
    routes = loader.build(tree, KEYS, Path("/cfg")).routes
    steps = [*routes["r"].steps, *routes["s"].steps]
    assert [getattr(each, limit) for each in steps] == [builtin[limit] if x is ... else x for x in expected]
    others = [(each, name) for each in steps for name in builtin if name != limit]
    assert [getattr(each, name) for each, name in others] == [builtin[name] for _, name in others]


def test_t1_a_deadline_holds_for_its_route_only():
    routes = build(ROUTE, "deadline: 1m").routes
    assert (routes["r"].deadline, routes["s"].deadline) == (60, None)


# B2: values.


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("300s", 300),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1h", 3600),
        ("1h1m1s1ms", 3661.001),
        ("0.5s", 0.5),
        ("1.5m", 90),
        ("1s500ms", 1.5),
        ("24h", 86400),
        ("' 10s '", 10),
        ("300", 300),
        ("'300'", 300),
        ("0.25", 0.25),
        ("'0.25'", 0.25),
        ("1e-3", 0.001),
        ("${LIMIT}", 7),
    ],
)
def test_b2_a_duration(written, seconds):
    loaded = build(TOP, f"default_timeout: {written}", {**KEYS, "LIMIT": "7s"})
    assert loaded.routes["r"].steps[0].timeout == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written",
    """0 -1 0s 0ms 0h0m0s 00 -5s 24h1ms 86401 25h 1d 1s1m 1s1s 5S 5sec s ms h '' 5s, 1,5s 1e9 .nan .inf -.inf nan inf
    nans '1:30' true false null [] [300s] {} 2020-01-01 ~ 999999999999999999999999999999s ++5 0x10s ${SPACE}""".split(),
)
def test_b2_what_is_no_duration(written):
    (mistake,) = mistakes_of(build, TOP, f"idle_timeout: {written}", {**KEYS, "SPACE": " "})
    assert mistake.startswith("idle_timeout: ")
    assert mistake.endswith(
        " is not a duration; write 300s, 1m30s, 500ms or a number of seconds, more than 0 and at most 24h"
    )


@pytest.mark.parametrize("written", ["' '", "'1m 30s'", "1 m", "300 s", "{s: 300}", "1" + "0" * 400])
def test_b2_what_is_no_duration_either(written):
    assert re.match("idle_timeout: .* is not a duration|idle_timeout: the number is too large",
        mistakes_of(build, TOP, f"idle_timeout: {written}")[0])  # fmt: skip


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1024", 1024),
        ("'2048'", 2048),
        ("2048B", 2048),
        ("1KiB", 1024),
        ("512KiB", 524288),
        ("32MiB", 33554432),
        ("32 MiB", 33554432),
        ("1024MiB", 1 << 30),
        ("'${SIZE}'", 4096),
    ],
)
def test_b2_a_size(written, size):
    assert build(TOP, f"limits: {{body: {written}}}", {**KEYS, "SIZE": "4KiB"}).max_body == size


@pytest.mark.parametrize(
    ("written", "in_all"),
    [
        ("{}", 512 << 20),
        ("{body: 1GiB}", 1 << 30),
        ("{bodies: 4GiB}", 4 << 30),
        ("{body: 1MiB, bodies: 1MiB}", 1 << 20),
    ],
)
def test_s6_the_limit_of_all_bodies_is_never_below_that_of_one(written, in_all):
    assert build(TOP, f"limits: {written}").max_bodies == in_all
    (mistake,) = mistakes_of(build, TOP, "limits: {body: 2MiB, bodies: 1MiB}")
    assert mistake.startswith("limits.bodies: is less than limits.body")
    (mistake,) = mistakes_of(build, TOP, "limits: {bodies: 2000GiB}")
    assert mistake == (
        "limits.bodies: '2000GiB' is not a size; write 32MiB, 512KiB or a number of bytes, from 1KiB to 1024GiB"
    )


@pytest.mark.parametrize(
    ("written", "in_all", "of_one"),
    [
        ("{}", 2000, None),
        ("{connections: 1, connections_per_address: 0}", 1, None),
        ("{connections: '500', connections_per_address: '50'}", 500, 50),
        ("{connections: 1000000, connections_per_address: 1000000}", 1_000_000, 1_000_000),
    ],
)
def test_s2_the_limits_of_connections(written, in_all, of_one):
    built = build(TOP, f"limits: {written}")
    assert (built.max_connections, built.max_per_address) == (in_all, of_one)


@pytest.mark.parametrize("written", "-1 1.5 1000001 many '' true null [] {} .nan 1e3 1_0x ²".split())
@pytest.mark.parametrize(("name", "more"), [("connections", ""), ("connections_per_address", ", or 0 for no limit")])
def test_b2_what_is_no_number_of_connections(name, more, written):
    (mistake,) = mistakes_of(build, TOP, f"limits: {{{name}: {written}}}")
    assert mistake.startswith(f"limits.{name}: ")
    assert mistake.endswith(f" is not a number of connections; write 1 to 1000000{more}")


def test_b2_no_connections_at_all():
    (mistake,) = mistakes_of(build, TOP, "limits: {connections: 0}")
    assert mistake == "limits.connections: 0 is not a number of connections; write 1 to 1000000"


@pytest.mark.parametrize(
    "written",
    "0 -1 -1MiB 1023 1025MiB 2GiB 1MB 1M 1.5MiB 1.5 2048.0 MiB '' KiB1 1kib true null [] {} [1024] .nan 1e6".split(),
)
def test_b2_what_is_no_size(written):
    (mistake,) = mistakes_of(build, TOP, f"limits: {{body: {written}}}")
    assert mistake.startswith("limits.body: ")
    assert mistake.endswith(" is not a size; write 32MiB, 512KiB or a number of bytes, from 1KiB to 1024MiB")


@pytest.mark.parametrize(
    ("written", "base_url"),
    [
        ("https://a.example", "https://a.example"),
        ("https://a.example/", "https://a.example"),
        ("https://a.example/v1/", "https://a.example/v1"),
        ("https://a.example/v1//", "https://a.example/v1"),
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("https://a.example:443/a/b%20c/v1", "https://a.example:443/a/b%20c/v1"),
        ("https://${HOST}/v1", "https://b.example/v1"),
    ],
)
def test_b2_a_base_url(written, base_url):
    environ = {**KEYS, "HOST": "b.example"}
    assert build(PROVIDER, f"base_url: '{written}'", environ).providers["one"].base_url == base_url


@pytest.mark.parametrize(
    ("written", "right"),
    [
        ("''", "write http(s)://host[:port]/path"),
        ("api.example/v1", "write http(s)://host[:port]/path"),
        ("ftp://a.example", "write http(s)://host[:port]/path"),
        ("https:///v1", "write http(s)://host[:port]/path"),
        ("https://", "write http(s)://host[:port]/path"),
        ("https:a.example", "write http(s)://host[:port]/path"),
        ("//a.example/v1", "write http(s)://host[:port]/path"),
        ("https://:443/v1", "write http(s)://host[:port]/path"),
        ("https://a.example:0/", "write http(s)://host[:port]/path"),
        ("https://a.example:65536/", "write http(s)://host[:port]/path"),
        ("https://a.example:http/", "write http(s)://host[:port]/path"),
        ("'https://[::1/v1'", "write http(s)://host[:port]/path"),
        ("'https://a b.example/'", "write http(s)://host[:port]/path"),
        ("'https://a.example/a b'", "write http(s)://host[:port]/path"),
        ('"https://a.example/\\r\\nX-Evil: 1"', "write http(s)://host[:port]/path"),
        ('"https://a.example/\\t"', "write http(s)://host[:port]/path"),
        ("5", "write http(s)://host[:port]/path"),
        ("null", "write http(s)://host[:port]/path"),
        ("[https://a.example]", "write http(s)://host[:port]/path"),
        ("https://user:pass@a.example/", "put the key in api_key"),
        ("https://user@a.example/", "put the key in api_key"),
        ("https://a.example/v1?key=1", "write the URL without it, and `query: {NAME: VALUE}` on the provider"),
        ("https://a.example/v1?", "write the URL without it, and `query: {NAME: VALUE}` on the provider"),
        ("'https://a.example/v1#top'", "contains a fragment (#); write http(s)://host[:port]/path"),
        ("'https://a.example/v1#'", "contains a fragment (#); write http(s)://host[:port]/path"),
    ],
)
def test_b2_what_is_no_base_url(written, right):
    (mistake,) = mistakes_of(build, PROVIDER, f"base_url: {written}")
    assert mistake.startswith("providers[0].base_url: ")
    assert right in mistake


def test_b2_a_variable_may_stand_in_any_string_at_any_depth():
    tree = yaml.safe_load("""
        api_key: ${A}
        default_timeout: ${N}s
        limits: {body: "${N}MiB"}
        listen: ["tcp:${PORT}:interface=127.0.0.1"]
        providers: [{name: "${A}", base_url: "https://${A}.example/${A}", headers: {X-Title: "${A} and ${N}"}}]
        routes: [{name: "${A}/${N}", steps: [{provider: "${A}", model: "${A}", conflict_resolution: "${C}"}]}]
    """)
    loaded = loader.build(tree, {"A": "a", "N": "7", "PORT": "90", "C": "tools"}, Path("/cfg"))
    assert (loaded.max_body, loaded.listeners[0].endpoint) == (7 << 20, "tcp:90:interface=127.0.0.1")
    assert (
        loader.build(
            {**tree, "port": "${PORT}", "listen": None}, {"A": "a", "N": "7", "PORT": "90", "C": "tools"}, Path("/cfg")
        ).port
        == 90
    )
    assert loaded.providers["a"].base_url == "https://a.example/a"
    assert loaded.providers["a"].headers["X-Title"].reveal() == "a and 7"
    (step,) = loaded.routes["a/7"].steps
    assert (step.timeout, step.model, step.conflict_resolution) == (7, "a", "tools")


def test_b2_a_key_may_hold_any_character_and_is_never_expanded_or_parsed_again(load):
    nasty = "${GATEWAY_API_KEY}: # '\"{}[]*&!|>%@`\\n"
    assert load(ORIGINAL, {**KEYS, "CEREBRAS_API_KEY": nasty}).providers["cerebras"].api_key.reveal() == nasty


def test_b2_a_variable_in_a_comment_or_a_name_is_not_expanded(load):
    assert load("# ${NOT_SET}\n" + ORIGINAL + "# ${NOT_SET}\n").port == 8080
    assert mistakes_of(build, TOP, "'${NOT_SET}': 1")[0].startswith("${NOT_SET}: unknown setting")


@pytest.mark.parametrize("text", ["$A", "$$A", "{A}", "$ {A}", "a$", "${", "${A"])
def test_b2_only_a_name_in_braces_is_a_variable(text):
    assert build(STEP, f"model: '{text}'").routes["r"].steps[1].model == text


@pytest.mark.parametrize("text", ["gpt-oss:free", "a/b", "модель", "x" * 256, "1"])
def test_b2_a_name(text):
    loaded = build(ROUTE, f"name: '{text}'")
    assert list(loaded.routes) == [text, "s"]


def test_b2_routes_differ_by_case():
    assert list(build(ROUTE, "name: S").routes) == ["S", "s"]


def test_a_providers_headers_are_kept_as_written():
    headers = build(PROVIDER, "headers: {X-Title: a, Authorization: 'Basic ${B}'}", {**KEYS, "B": "b"})
    shown = {name: value.reveal() for name, value in headers.providers["one"].headers.items()}
    assert shown == {"X-Title": "a", "Authorization": "Basic b"}


@pytest.mark.parametrize("place", [TOP, ROUTE, STEP], ids=["top", "route", "step"])
@pytest.mark.parametrize(("written", "seconds"), [("0", 0), ("0s", 0), ("0.0", 0), ("5", 5), ("1m30s", 90)])
def test_f3_a_cooldown_may_stand_on_a_step_its_route_or_the_top(place, written, seconds):
    route = build(place, f"cooldown: {written}").routes["r"]
    assert route.steps[1 if place is STEP else 0].cooldown == seconds


def test_f3_a_cooldown_is_60_seconds_and_0_on_a_route_is_not_taken_for_absent():
    assert build(TOP, "default_timeout: 9").routes["r"].steps[0].cooldown == 60
    tree = build(ROUTE, "cooldown: 0\ntimeout: 3")
    assert tree.routes["r"].steps[0].cooldown == 0


@pytest.mark.parametrize(
    ("place", "fragment", "path"),
    [
        (STEP, "retries: -1", "routes[0].steps[1].retries"),
        (STEP, "retries: 11", "routes[0].steps[1].retries"),
        (STEP, "retries: true", "routes[0].steps[1].retries"),
        (ROUTE, "stop_on: [399]", "routes[0].stop_on[0]"),
        (ROUTE, "stop_on: [400, 600]", "routes[0].stop_on[1]"),
        (ROUTE, "stop_on: ['a b']", "routes[0].stop_on[0]"),
        (ROUTE, "stop_on: 400", "routes[0].stop_on"),
    ],
)
def test_f2_f5_retries_and_stop_on_that_make_no_sense(place, fragment, path):
    (mistake,) = mistakes_of(build, place, fragment)
    assert mistake.startswith(f"{path}: ")


@pytest.mark.parametrize("url", ["HTTPS://h.example/v1", "Https://h.example:444/v1", "HTTP://h.example/v1"])
def test_b2_the_scheme_of_a_url_counts_in_any_case(url):
    assert (
        build(PROVIDER, f"base_url: {url}").providers["one"].base_url
        == url.split(":")[0].lower() + url[url.index(":") :]
    )


@pytest.mark.parametrize(
    ("fragment", "literal"),
    [
        ("api_key: 'sk-literal${A}'", True),
        ("api_key: 'sk-literal${'", True),
        ("api_key: '${A}${B}'", False),
        ("headers: {X-Auth: literal-cred-9}", True),
        ("headers: {X-Whatever: literal-cred-9}", True),
        ("headers: {Authorization: 'Bearer ${A}'}", False),
        ("headers: {X-Title: my company, HTTP-Referer: 'https://a.example'}", False),
        ("headers: {X-Flag: 'on'}", False),
    ],
)
def test_b10_what_is_a_literal_key(fragment, literal):
    tree = {"api_key": "${A}", "providers": [yaml.safe_load(fragment)]}
    assert file_mode.holds_literal_key(tree) is literal


def test_f2_f5_retries_and_stop_on():
    assert build(STEP, "retries: 3").routes["r"].steps[1].retries == 3
    assert build(ROUTE, "stop_on: [400, '413', content_filter]").routes["r"].stop_on == {"400", "413", "content_filter"}


@pytest.mark.parametrize(
    ("written", "after", "share"),
    [("{}", 3, 0.05), ("{after: 500ms, share: 0.5%}", 0.5, 0.005), ("{share: '100 %'}", 3, 1)],
)
def test_f8_hedge(written, after, share):
    hedge = build(ROUTE, f"hedge: {written}").routes["r"].hedge
    assert (hedge.after, hedge.share) == (after, pytest.approx(share))


# B2: mistakes.

UNKNOWN_TOP = "nown here: api_key, providers, routes, port"
NO_DURATION = "is not a duration; write 300s"
NO_NAME = "is not a name; write a string of 1 to 256 printable characters"
AT_LEAST_ONE = "expected a list with at least one entry"
NO_KEY = "cannot be sent in a header"

MISTAKES = [
    # where, what is written there, path, what would be right
    (TOP, "api_key: DROP", "api_key", "is required and missing"),
    (TOP, "routes: DROP", "routes", "is required and missing"),
    (PROVIDER, "base_url: DROP", "providers[0].base_url", "is required and missing"),
    (STEP, "model: DROP", "routes[0].steps[1].model", "is required and missing"),
    (STEP, "provider: DROP", "routes[0].steps[1].provider", "is required and missing"),
    (ROUTE, "steps: DROP", "routes[0].steps", "is required and missing"),
    (ROUTE, "name: DROP", "routes[0].name", "is required and missing"),
    # unknown
    (TOP, "colour: red", "colour", UNKNOWN_TOP),
    (TOP, "Port: 80", "Port", UNKNOWN_TOP),
    (TOP, "1: 2", "1", UNKNOWN_TOP),
    (TOP, "null: 2", "None", UNKNOWN_TOP),
    (PROVIDER, "url: x", "providers[0].url", "nown here: name, base_url, api_key"),
    (ROUTE, "step: []", "routes[0].step", "nown here: name, steps"),
    (STEP, "time_out: 5s", "routes[0].steps[1].time_out", "nown here: provider, model, timeout"),
    (TOP, "limits: {size: 5}", "limits.size", "nown here: body, bodies, connections"),
    (TOP, "tls: {cert_file: a, key_file: b, ca: c}", "tls.ca", "nown here: cert_file, key_file"),
    (
        TOP,
        "listen: [{endpoint: 'unix:/a', tls: 1}]",
        "listen[0].tls",
        "unknown setting here; tls belongs in providers[]",
    ),
    # kinds
    (TOP, "api_key: 12345", "api_key", "is not a string; write it in quotes"),
    (TOP, "api_key: null", "api_key", "is empty; write the key"),
    (TOP, "api_key: ''", "api_key", "is empty; write the key"),
    (TOP, "api_key: ' k'", "api_key", NO_KEY),
    (TOP, "api_key: ключ", "api_key", NO_KEY),
    (TOP, 'api_key: "a\\nb"', "api_key", NO_KEY),
    (PROVIDER, "api_key: true", "providers[0].api_key", "is not a string; write it in quotes"),
    (PROVIDER, "api_key: '${TWO_LINES}'", "providers[0].api_key", NO_KEY),
    (SPARE, "name: ''", "providers[2].name", NO_NAME),
    (ROUTE, "name: ' '", "routes[0].name", NO_NAME),
    (ROUTE, "name: 5", "routes[0].name", NO_NAME),
    (ROUTE, "name: 2020-01-01", "routes[0].name", NO_NAME),
    (ROUTE, 'name: "a\\x7fb"', "routes[0].name", NO_NAME),
    (ROUTE, f"name: {'x' * 257}", "routes[0].name", NO_NAME),
    (STEP, "model: null", "routes[0].steps[1].model", NO_NAME),
    (STEP, "model: [m]", "routes[0].steps[1].model", NO_NAME),
    (PROVIDER, "ca_file: 5", "providers[0].ca_file", "is not a file name"),
    (PROVIDER, "ca_file: ''", "providers[0].ca_file", ""),
    *[
        (
            ROUTE,
            f"hedge: {{share: {share}}}",
            "routes[0].hedge.share",
            "is not a share; write 5%, more than 0% and at most",
        )
        for share in ("0%", "101%", "5", "0.05", "-1%", "five", "true", "[5%]", "'%'")
    ],
    (ROUTE, "hedge: {after: 0}", "routes[0].hedge.after", NO_DURATION),
    (ROUTE, "hedge: 3s", "routes[0].hedge", "expected a mapping with after, share"),
    (TOP, "limits: {keep_alive: 0}", "limits.keep_alive", NO_DURATION),
    (TOP, "tls: {cert_file: a}", "tls.key_file", "is required and missing"),
    (TOP, "tls: {key_file: a}", "tls.cert_file", "is required and missing"),
    (TOP, "tls: {cert_file: '', key_file: a}", "tls.cert_file", ""),
    (TOP, "tls: {cert_file: a, key_file: ''}", "tls.key_file", ""),
    (TOP, "tls: on", "tls", "expected a mapping with cert_file, key_file"),
    (TOP, "routes: []", "routes", AT_LEAST_ONE),
    (TOP, "routes: null", "routes", AT_LEAST_ONE),
    (TOP, "routes: [r]", "routes[0]", "expected a mapping with name, steps"),
    (ROUTE, "steps: []", "routes[0].steps", AT_LEAST_ONE),
    (ROUTE, "steps: [one/m]", "routes[0].steps[0]", "expected a mapping with provider, model"),
    (TOP, "limits: 5MiB", "limits", "expected a mapping with body, bodies, connections, connections_per_address"),
    (TOP, "listen: []", "listen", AT_LEAST_ONE),
    (TOP, "listen: 'unix:/a'", "listen", AT_LEAST_ONE),
    (TOP, "listen: [5]", "listen[0]", "expected a mapping with endpoint"),
    (TOP, "listen: [{insecure: true}]", "listen[0].endpoint", "is required and missing"),
    (TOP, "listen: [{endpoint: 'unix:/a', insecure: 5}]", "listen[0].insecure", "5 is not true or false"),
    # ranges and words
    (TOP, "default_timeout: 0s", "default_timeout", NO_DURATION),
    (TOP, "connect_timeout: -1", "connect_timeout", NO_DURATION),
    (ROUTE, "deadline: soon", "routes[0].deadline", NO_DURATION),
    (ROUTE, "idle_timeout: 25h", "routes[0].idle_timeout", NO_DURATION),
    (STEP, "timeout: 0", "routes[0].steps[1].timeout", NO_DURATION),
    (TOP, "when_refused: pass", "when_refused", "write report or pass_on"),
    (ROUTE, "when_refused: true", "routes[0].when_refused", "write report or pass_on"),
    (STEP, "conflict_resolution: both", "routes[0].steps[1].conflict_resolution", "write tools or format"),
    (STEP, "conflict_resolution: Tools", "routes[0].steps[1].conflict_resolution", "write tools or format"),
    (STEP, "conflict_resolution: []", "routes[0].steps[1].conflict_resolution", "write tools or format"),
    (TOP, "cooldown: false", "cooldown", ""),
    (TOP, "cooldown: [0]", "cooldown", "or 0 for never"),
    (STEP, "cooldown: -1", "routes[0].steps[1].cooldown", ""),
    (TOP, "port: 0", "port", "write a number from 1 to 65535"),
    (TOP, "port: 65536", "port", "write a number from 1 to 65535"),
    (TOP, "port: http", "port", "write a number from 1 to 65535"),
    (TOP, "port: 80.0", "port", "write a number from 1 to 65535"),
    (TOP, "port: true", "port", "write a number from 1 to 65535"),
    (TOP, "port: null", "port", "write a number from 1 to 65535"),
    (TOP, "port: [80]", "port", "write a number from 1 to 65535"),
    # headers
    (PROVIDER, "headers: [X-A]", "providers[0].headers", "expected a mapping"),
    (PROVIDER, "headers: abca", "providers[0].headers", "expected a mapping"),
    (PROVIDER, "headers: 5", "providers[0].headers", "expected a mapping"),
    (PROVIDER, "headers: true", "providers[0].headers", "expected a mapping"),
    (PROVIDER, "headers: null", "providers[0].headers", "expected a mapping"),
    (PROVIDER, "headers: {'X A': a}", "providers[0].headers.X A", "is not a header name"),
    (PROVIDER, "headers: {5: a}", "providers[0].headers.5", "is not a header name"),
    (PROVIDER, "headers: {X-A: 5}", "providers[0].headers.X-A", "is not a string; write it in quotes"),
    (PROVIDER, 'headers: {X-A: "a\\r\\nX-B: b"}', "providers[0].headers.X-A", NO_KEY),
    (PROVIDER, "headers: {Host: a}", "providers[0].headers.Host", "sets itself; remove it"),
    (PROVIDER, "headers: {content-LENGTH: a}", "providers[0].headers.content-LENGTH", "sets itself; remove it"),
    (PROVIDER, "headers: {Transfer-Encoding: a}", "providers[0].headers.Transfer-Encoding", "remove it"),
    (PROVIDER, "headers: {Cookie: a}", "providers[0].headers.Cookie", "sets itself; remove it"),
    (
        PROVIDER,
        "headers: {X-A: a, x-a: b}",
        "providers[0].headers.x-a",
        "is written twice, in upper and lower case; keep one",
    ),
    # names that must or must not meet
    (SPARE, "name: two", "providers[2].name", "is the same as the name of providers[1]; write a unique name"),
    (ROUTE, "name: s", "routes[1].name", "is the same as the name of routes[0]; write a unique name"),
    (
        STEP,
        "provider: three",
        "routes[0].steps[1].provider",
        "no provider is named 'three'; there are: one, spare, two",
    ),
    (STEP, "provider: Two", "routes[0].steps[1].provider", "no provider is named 'Two'; there are: one, spare, two"),
    # listeners (see B11)
    (TOP, "listen: [{endpoint: 'ssl:443', insecure: true}]", "listen[0].endpoint", "write tcp:PORT:interface=ADDRESS"),
    (TOP, "listen: [8080]", "listen[0]", "expected a mapping with endpoint"),
    # variables
    (TOP, "api_key: ${NOPE}", "api_key", "the environment variable NOPE is not set"),
    (TOP, "api_key: $NOPE", "api_key", "seems to be a variable in another syntax; write ${NAME}"),
    (TOP, "api_key: '${NOPE'", "api_key", "seems to be a variable in another syntax; write ${NAME}"),
    (
        PROVIDER,
        "api_key: 'sk-${NOPE'",
        "providers[0].api_key",
        "seems to be a variable in another syntax; write ${NAME}",
    ),
    (TOP, "api_key: a${EMPTY}b", "api_key", "the environment variable EMPTY is empty"),
    (TOP, "api_key: '${}'", "api_key", "is not the name of a variable; write ${NAME}"),
    (TOP, "api_key: '${A B}'", "api_key", "is not the name of a variable; write ${NAME}"),
    (TOP, "api_key: '${A:-b}'", "api_key", "is not the name of a variable; write ${NAME}"),
    (TOP, "port: ${NOPE}", "port", "the environment variable NOPE is not set"),
    (TOP, "default_timeout: ${NOPE}", "default_timeout", "the environment variable NOPE is not set"),
    (PROVIDER, "base_url: 'https://${NOPE}/'", "providers[0].base_url", "the environment variable NOPE is not set"),
    (PROVIDER, "headers: {X-A: '${NOPE}'}", "providers[0].headers.X-A", "the environment variable NOPE is not set"),
    (STEP, "provider: ${NOPE}", "routes[0].steps[1].provider", "the environment variable NOPE is not set"),
    (TOP, "listen: ['${NOPE}']", "listen[0]", "the environment variable NOPE is not set"),
    (TOP, "listen: [{endpoint: '${NOPE}'}]", "listen[0].endpoint", "the environment variable NOPE is not set"),
    (TOP, "tls: {cert_file: '${NOPE}', key_file: b}", "tls.cert_file", "the environment variable NOPE is not set"),
]


@pytest.mark.parametrize(
    ("place", "fragment", "path", "right"), MISTAKES, ids=[f"{row[2]}-{row[1][:40]}" for row in MISTAKES]
)
def test_b2_one_mistake_is_one_line_with_its_path_and_what_would_be_right(place, fragment, path, right):
    (mistake,) = mistakes_of(build, place, fragment, {**KEYS, "EMPTY": "", "TWO_LINES": "a\nb"})
    assert mistake.startswith(f"{path}: ")
    assert right in mistake
    assert len(mistake) < 400


@pytest.mark.parametrize(
    ("place", "fragment", "path"),
    [
        (TOP, "port: {}", "port: "),
        (TOP, "cooldown: {}", "cooldown: "),
        (TOP, "default_timeout: {}", "default_timeout: "),
        (TOP, "? {}\n: 1", ""),
        (SPARE, "name: {}", "providers[2].name: "),
        (PROVIDER, "headers:\n  ? {}\n  : a", "providers[0].headers."),
        (STEP, "provider: {}", "routes[0].steps[1].provider: "),
        (STEP, "conflict_resolution: {}", "routes[0].steps[1].conflict_resolution: "),
    ],
)
def test_b2_a_number_too_long_to_be_printed_is_a_mistake_like_any_other(place, fragment, path):
    mistakes = mistakes_of(build, place, fragment.format("0x" + "f" * 4000))
    assert mistakes[0].startswith(path)
    assert max(map(len, mistakes)) < 400


@pytest.mark.parametrize("written", ["DROP", "{}", "[]", "null", "one"])
def test_b2_without_providers(written):
    first, *others = mistakes_of(build, TOP, f"providers: {written}")
    assert first.startswith("providers: " + {"DROP": "is required and missing"}.get(written, AT_LEAST_ONE))
    assert not [mistake for mistake in others if "].provider: no provider is named" not in mistake]


def test_b2_a_wrong_name_is_named_by_all_that_use_it_and_by_nothing_else():
    assert mistakes_of(build, PROVIDER, "name: DROP") == [
        "providers[0].name: is required and missing",
        "routes[0].steps[0].provider: no provider is named 'one'; there are: spare, two",
    ]


def test_b2_two_names_from_variables_that_are_not_set_are_not_taken_for_the_same():
    tree = copy.deepcopy(GOOD)
    for number, route in enumerate(tree["routes"]):
        route["name"] = f"${{NAME_{number}}}"
    assert mistakes_of(loader.build, tree, KEYS, Path("/cfg")) == [
        "routes[0].name: the environment variable NAME_0 is not set",
        "routes[1].name: the environment variable NAME_1 is not set",
    ]


def test_b2_port_from_the_environment_is_checked_too():
    assert mistakes_of(build, environ={**KEYS, "PORT": "http"}) == [
        "port: the value of '${PORT}' is not a port; write a number from 1 to 65535"
    ]


def test_b2_half_a_surrogate_pair_is_a_mistake_like_any_other():
    (mistake,) = mistakes_of(build, TOP, 'admin: {endpoint: "tcp:1:interface=127.0.0.1", insecure: "\\ud800"}')
    assert mistake == "admin.insecure: the value is not true or false; write one of the two"


def test_b2_every_mistake_is_reported_at_once(load):
    text = """\
api_key: ${NO_GATEWAY_KEY}
port: 99999
colour: red
connect_timeout: 5 parsecs
port: 80
listen: ["tcp:443"]
limits: {body: huge}
providers:
  - name: one
    base_url: ftp://one.example
    api_key: ${NO_KEY_ONE}
    headers: {Host: a, X-A: "${NO_HEADER}"}
  - name: one
    base_url: https://one.example
    api_key: literal-key
routes:
  - name: r
    deadline: 0
    steps:
      - provider: nobody
        model: m
        conflict_resolution: coin
        timeout: never
      - {provider: one, provider: one}
  - name: r
    steps: []
"""
    expected = """\
line 5: port: is written twice, on line 2 and on line 5; keep one of the two
line 24: routes[0].steps[1].provider: is written twice, on line 24; keep one of the two
line 2: port: cannot be used together with listen, which has its own ports; keep one of the two
config.yaml: holds a key and is readable by every user; run: chmod 600
line 1: api_key: the environment variable NO_GATEWAY_KEY is not set
line 11: providers[0].api_key: the environment variable NO_KEY_ONE is not set
line 12: providers[0].headers.X-A: the environment variable NO_HEADER is not set
line 3: colour: unknown setting
line 10: providers[0].base_url: 'ftp://one.example' is not a provider's URL
providers[0].headers.Host: is a header that the gateway sets itself
line 23: routes[0].steps[0].timeout: 'never' is not a duration
line 22: routes[0].steps[0].conflict_resolution: 'coin' is unknown; write tools or format
line 24: routes[0].steps[1].model: is required and missing
line 18: routes[0].deadline: 0 is not a duration
line 26: routes[1].steps: expected a list with at least one entry
line 4: connect_timeout: '5 parsecs' is not a duration
line 7: limits.body: 'huge' is not a size
only one of the environment variables TLS_CERT_FILE and TLS_KEY_FILE is set
line 13: providers[1].name: is the same as the name of providers[0]
routes[1].name: is the same as the name of routes[0]
line 20: routes[0].steps[0].provider: no provider is named 'nobody'; there are: one
listen[0]: plain HTTP beyond loopback"""
    mistakes = mistakes_of(load, text, {"TLS_CERT_FILE": "a"}, 0o644)
    missing = [line for line in expected.splitlines() if not any(line in mistake for mistake in mistakes)]
    assert missing == []
    assert len(mistakes) == len(set(mistakes)) == len(expected.splitlines())


def test_b2_the_error_itself_shows_every_mistake():
    with pytest.raises(ConfigError) as caught:
        build(TOP, "{port: 0, colour: red}")
    assert [mistake for mistake in caught.value.mistakes if mistake not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 1\n", "line 2: a: is written twice, on line 1 and on line 2; keep one of the two"),
        ("limits:\n  body: 1\n  body: 2\n", "line 3: limits.body: is written twice, on line 2 and on line 3; keep one"),
        (
            "routes:\n- name: a\n  name: b\n",
            "line 3: routes[0].name: is written twice, on line 2 and on line 3; keep one",
        ),
        ("routes:\n- steps:\n  - {model: a, model: b}\n", "routes[0].steps[0].model: is written twice"),
        ("a: {b: {c: 1, c: 2}}\n", "a.b.c: is written twice"),
    ],
)
def test_b2_a_name_that_stands_twice_is_a_mistake(load, text, said):
    assert [mistake for mistake in mistakes_of(load, text) if said in mistake]


def test_b2_anchors_and_merges_are_no_doubles(load):
    text = """
api_key: ${GATEWAY_API_KEY}
providers: [{name: a, base_url: https://a.example}]
routes:
- {name: r, steps: [&first {provider: a, model: m, timeout: 5s}]}
- {name: s, steps: [{<<: *first, model: other}, *first]}
"""
    steps = load(text).routes["s"].steps
    assert [(step.model, step.timeout) for step in steps] == [("other", 5), ("m", 5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty; write api_key, providers and routes"),
        ("# nothing\n", "is empty"),
        ("null", "is empty"),
        ("---\n", "is empty"),
        ("5", "the file: expected a mapping with api_key, providers, routes"),
        ("[]", "the file: expected a mapping with api_key"),
        ("text", "the file: expected a mapping with api_key"),
        ("a: b: c", "line 1: not YAML: mapping values are not allowed here"),
        ("a: 1\n b: 2", "line 2: not YAML: "),
        ("a: 'x\n", "line 1: not YAML: a quote opens on this line and is not closed"),
        ("a: [1\n", "line 1: not YAML: a [ opens on this line and is not closed by a ]"),
        ("a:\n\t- 1", "line 2: not YAML: "),
        ("a: 1\n---\nb: 2", "line 2: not YAML: but found another document"),
        ("a: !!python/object/apply:os.system [echo]", "line 1: not YAML: "),
        ("a: !!bool x", "not YAML: "),
        ("a: !!int ''", "not YAML: "),
        ("a: !!int x", "not YAML: "),
        ("a: !!float x", "not YAML: "),
        ("a: !!timestamp x", "not YAML: "),
        ("a: 2020-99-99", "not YAML: "),
        ("? [a]\n: 1", "line 1: not YAML: found unhashable key"),
        ("<<: 1", "line 1: not YAML: "),
        ("a: *nobody", "line 1: not YAML: "),
        ("a: &a [*a]", ""),
        ("a: &a {b: *a}", ""),
        ("[" * 100_000, "not YAML: "),
        ("\x00", "not YAML: "),
        ("a: \x1b", "not YAML: "),
        (b"a: \xff\xfe", "is not UTF-8"),
        (ORIGINAL.encode("utf-16"), "is not UTF-8"),
        ("#" * (loader.MAX_FILE + 1), "is larger than 1048576 bytes"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_b2_a_file_that_is_no_configuration_says_why(load, text, said):
    assert [mistake for mistake in mistakes_of(load, text) if said in mistake]


def test_b2_a_byte_order_mark_and_windows_line_ends_do_no_harm(load):
    assert load(b"\xef\xbb\xbf" + ORIGINAL.replace("\n", "\r\n").encode()) == load(ORIGINAL)


def test_b2_a_file_that_cannot_be_read_says_why(tmp_path):
    assert mistakes_of(loader.load, tmp_path / "nope", KEYS) == [
        f"{tmp_path}/nope: cannot be read: No such file or directory"
    ]
    (mistake,) = mistakes_of(loader.load, tmp_path, KEYS)
    assert mistake.startswith(f"{tmp_path}: this is a folder; ")


# B9: no key is shown.


@pytest.mark.parametrize(
    ("place", "fragment"),
    [
        (TOP, "api_key: ' sk-secret'"),
        (TOP, "api_key: [sk-secret]"),
        (TOP, "api_key: {sk: sk-secret}"),
        (TOP, "api_key: sk-secret\u20ac"),
        (TOP, "api_kye: sk-secret"),
        (TOP, "api_key: ${SPACED}"),
        (TOP, "api_key: ${NEWLINE}"),
        (PROVIDER, "api_key: 'sk-secret '"),
        (PROVIDER, "key: sk-secret"),
        (PROVIDER, "base_url: https://sk-secret@a.example/"),
        (PROVIDER, "base_url: https://a.example/?key=sk-secret"),
        (PROVIDER, "base_url: sk-secret"),
        (PROVIDER, "headers: {Authorization: 'Bearer sk-secret '}"),
        (PROVIDER, "headers: {Cookie: sk-secret}"),
        (PROVIDER, "headers: [Bearer sk-secret]"),
        (PROVIDER, "headers: sk-secret"),
        (TOP, "default_timeout: sk-secret"),
        (TOP, "limits: {body: sk-secret}"),
        (TOP, "listen: [sk-secret]"),
        (TOP, "tls: sk-secret"),
    ],
)
def test_b9_a_mistake_does_not_quote_a_key(place, fragment):
    environ = {**KEYS, "SPACED": "sk-secret ", "NEWLINE": "sk-secret\n"}
    assert "sk-secret" not in str(mistakes_of(build, place, fragment, environ))


@pytest.mark.parametrize(
    "text",
    [
        "*sk-secret",
        "!sk-secret",
        "!!sk-secret x",
        "&sk-secret &sk-secret x",
        "@sk-secret",
        "`sk-secret",
        "%sk-secret",
        "sk-secret: x",
        "'sk-secret",
        '"sk-secret',
        '"sk-secret\\q"',
        "[sk-secret",
        "|sk-secret",
        "sk-secret\x00",
        "!<sk-secret x",
        "!sk-secret! x",
    ],
)
def test_b9_a_syntax_error_does_not_quote_a_key(load, text):
    told = mistakes_of(load, f"api_key: {text}\n")
    assert [mistake for mistake in told if "line 1" in mistake or "not YAML" in mistake or "api_key" in mistake]
    assert "sk-secret" not in str(told)


WHOLE = """\
api_key: a-good-key
port: 8080
default_timeout: 300s
cooldown: 60s
limits: {body: 32MiB, connections: 2000}
admin: {endpoint: "tcp:9464:interface=127.0.0.1", insecure: true}
tls: {cert_file: a.pem, key_file: b.pem, certificates: [{cert_file: c.pem, key_file: d.pem}], client_ca: e.pem,
  client_certificate: required}
providers:
- {name: one, base_url: "https://one.example/v1", api_key: another-good-key, headers: {X-Title: title}, ca_file: f.pem}
- {name: two, base_url: "https://two.example/v1", headers: {Authorization: Basic abc}}
routes:
- name: r
  deadline: 10m
  stop_on: [content_filter]
  when_refused: pass_on
  steps:
  - {provider: one, model: m, timeout: 5s, retries: 1, conflict_resolution: tools}
  - {provider: two, model: m}
"""
WITH_LISTEN = WHOLE.replace("port: 8080", 'listen: ["tcp:8443", {endpoint: "tcp:8080", insecure: true}]')
CANARIES = ["sk-canary-4f9c1d2e8b7a6051f00d", "gsk_CaNaRy7Qm2XvB9tLzK4wR8pD", "AKIACANARY7EXAMPLE9Q"]
FORMS = ["{}", " {}", "{}\n", "Bearer {}\n", "https://{}", "https://{}@h.example", "https://u:{}@h.example", "https://h/?key={}",
    "https://h/{} x", "https://.{}.", "${{{}}}", "${{{}:-x}}", "tcp:{}", "tcp:1:interface={}:x=1", "unix:{}:mode={}", "systemd:{}",
    "systemd:domain=INET:name={}", "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", "{}/{}"]  # fmt: skip


def with_each_place(tree, text):
    """``tree`` once for each value and each name in it, with ``text`` there."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            rest = {other: each for other, each in tree.items() if other != name}
            yield {**rest, text: value}
            yield {**tree, text: value}
            yield from ({**tree, name: each} for each in with_each_place(value, text))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from ([*tree[:index], each, *tree[index + 1 :]] for each in with_each_place(value, text))
    yield text
    if " " not in text:
        yield {text: [text]}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("each", [5, pytest.param(1, marks=pytest.mark.slow)], ids=["some places", "all places"])
def test_b9_no_key_is_quoted_wherever_in_the_file_it_stands(tmp_path, form, each):
    """Each value and each name of a whole configuration in turn is a key; no mistake and no warning quotes it.

    By default a form stands in every fifth place, the next form in those beside them.
    """
    canary = CANARIES[FORMS.index(form) % len(CANARIES)]
    text = form.replace("{}", canary).replace("{{", "{").replace("}}", "}")
    trees = list(with_each_place(yaml.safe_load(WHOLE), text))
    if ":" in form:
        trees += with_each_place(yaml.safe_load(WITH_LISTEN), text)
    trees = trees[FORMS.index(form) % each :: each]
    told = [mistake for tree in trees for mistake in told_of(tree, tmp_path)]
    assert [mistake for mistake in told if canary in mistake] == []
    assert len(told) > len(trees) / 2


def told_of(tree, folder):
    """What the service says of a configuration, up to where it would open its listeners."""
    try:
        loaded = loader.build(tree, KEYS, folder)
        return GatewayService(lambda: loaded, reactor, None).config.warnings
    except ConfigError as error:
        return error.mistakes


@pytest.mark.parametrize("canary", CANARIES)
@pytest.mark.parametrize(
    "text",
    [
        "api_key {}: x", "{}: x\n{}: y", "providers:\n- {}: x\n  {}: y", "api_key: a\n {}: b", "{}", "- {}", "? {}", "a: {}: b",
        "a: [{}", "a: *{}", "a: !{} x", "!!python/{} x", "a: !!binary {}", "a: !!int {}", "%{} x", "a: '{}", "\t{}: x",
        "? [{}, {{{}: x}}]\n: y", "a: !!timestamp {}", "a: &{} [*{}]", "<<: {}", "<<: [{}]", "a: |{}\n  x", "{}: &a {{<<: *a}}",
    ],
)  # fmt: skip
def test_b9_no_key_is_quoted_from_a_text_that_is_no_configuration(load, text, canary):
    told = mistakes_of(
        load, text.replace("{{", "(").replace("}}", ")").replace("{}", canary).replace("(", "{").replace(")", "}")
    )
    assert canary not in str(told)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *[(text, text) for text in """time_out Port connections_per_address X-Title OpenAI-Organization x-goog-api-key
            anthropic-version dynamic/n8n gpt-oss-120b N8N_GATEWAY_API_KEY OPENROUTER_API_KEY provider-eu-west-1
            модель-большая ${NOT_SET} None 1""".split()],
        *[(text, "***") for text in (*CANARIES, "550e8400-e29b-41d4-a716-446655440000", "deadbeef" * 4, "word-" * 20,
            "efizjleflzmepqtlcqzr", "api_key sk-4f9c1d2e8b7a6051")],
    ],
)  # fmt: skip
def test_b9_what_a_message_quotes_is_a_name_and_nothing_like_a_key(text, shown):
    assert quoted(text) == shown


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        *[(path, path) for path in ("a.pem", "/etc/ai-gateway/tls/fullchain.pem", "/etc/letsencrypt/live/gw.example.com/privkey.pem",
            "/run/credentials/ai-gateway.service/tls.key")],
        *[(path, "***") for path in (f"/cfg/{CANARIES[0]}", "/cfg/-----BEGIN PRIVATE KEY-----\nMIGH\n", f"/{CANARIES[1]}/a.pem")],
    ],
)  # fmt: skip
def test_b9_a_file_is_named_unless_somebody_put_a_key_in_its_place(path, shown):
    assert quoted_file(path) == shown


def test_b9_no_key_in_a_repr_of_the_config(load):
    text = ORIGINAL.replace(
        "api.cerebras.ai/v1", "api.cerebras.ai/v1\n    headers: {X-Token: token-key, X-Title: title}"
    )
    loaded = load(text)
    shown = f"{loaded!r} {loaded} {loaded.providers} {loaded.callers} {loaded.secrets} {loaded.routes}"
    assert [key for key in [*KEYS.values(), "token-key"] if key in shown] == []
    assert "***" in shown


def test_b9_every_key_is_among_those_to_be_hidden_and_nothing_else():
    loaded = build(
        PROVIDER,
        """headers: {Authorization: authorization-value, X-Api-Key: x-api-key-value, X-Auth-TOKEN: token-value,
        Client-Secret: client-secret-value, X-Title: my title, HTTP-Referer: 'https://my.example', OpenAI-Beta: x=1}""",
    )
    assert sorted(secret.reveal() for secret in loaded.secrets) == [
        "authorization-value",
        "cerebras-key",
        "client-secret-value",
        "gateway-key-long-enough",
        "token-value",
        "x-api-key-value",
    ]


# B10: who may read the file.

LITERAL = {
    "gateway key": (TOP, "api_key: literal-key"),
    "provider key": (PROVIDER, "api_key: literal-key"),
    "header": (PROVIDER, "headers: {Authorization: Basic abc}"),
    "other header": (PROVIDER, "headers: {x-goog-api-key: abc}"),
}
NOT_LITERAL = {
    "variables": (TOP, "{}"),
    "header that is no key": (PROVIDER, "headers: {X-Title: my title}"),
    "header from a variable": (PROVIDER, "headers: {Authorization: 'Basic ${CEREBRAS_API_KEY}'}"),
    "no provider key": (PROVIDER, "api_key: DROP"),
}


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666, 0o664, 0o777, 0o004])
@pytest.mark.parametrize("key", LITERAL)
def test_b10_a_literal_key_that_everybody_can_read_is_refused(load, key, mode):
    (mistake,) = mistakes_of(load, yaml.safe_dump(merged(*LITERAL[key])), KEYS, mode)
    assert f"chmod 600 {load.path}" in mistake
    assert "readable by every user" in mistake


@pytest.mark.parametrize(
    ("mode", "who"),
    [
        (0o640, "its group"),
        (0o660, "its group"),
        (0o440, "its group"),
        (0o600, None),
        (0o400, None),
        (0o700, None),
        (0o711, None),
        (0o622, None),
    ],
)
@pytest.mark.parametrize("key", LITERAL)
def test_b10_a_literal_key_that_the_group_can_read_is_one_warning(load, key, mode, who):
    warned(load(yaml.safe_dump(merged(*LITERAL[key])), KEYS, mode), who)


@pytest.mark.parametrize(
    ("mode", "who"), [(0o644, "every user"), (0o604, "every user"), (0o640, "its group"), (0o600, None), (0o400, None)]
)
@pytest.mark.parametrize("key", NOT_LITERAL)
def test_b10_without_a_literal_key_it_is_one_warning(load, key, mode, who):
    warned(load(yaml.safe_dump(merged(*NOT_LITERAL[key])), KEYS, mode), who)


def warned(loaded, who):
    warnings = [each for each in loaded.warnings if "readable" in each]
    if who is None:
        assert warnings == []
    else:
        (warning,) = warnings
        assert f"readable by {who}" in warning
        assert "chmod 600" in warning


# B11: listeners and certificates.

TLS = "tls: {cert_file: a, key_file: b}"


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp:8080:interface=127.0.0.1",
        "tcp:8080:interface=127.1.2.3",
        "tcp:8080:backlog=5:interface=127.0.0.1",
        "tcp:port=8080:interface=127.0.0.1",
        r"tcp6:8080:interface=\:\:1",
        r"tcp6:8080:interface=0\:0\:0\:0\:0\:0\:0\:1",
        "unix:/run/aigw.sock",
        "unix:/run/aigw.sock:mode=600",
    ],
)
@pytest.mark.parametrize("tls", ["", TLS])
def test_b11_plain_http_is_allowed_on_loopback(endpoint, tls):
    loaded = build(TOP, f"listen: ['{endpoint}']\n{tls}")
    assert loaded.listeners == (Listener(endpoint, insecure=False),)


BEYOND = [
    "tcp:8080",
    "tcp:8080:interface=",
    "tcp:8080:interface=0.0.0.0",
    "tcp:8080:interface=10.0.0.1",
    "tcp:8080:interface=1270.0.0.1",
    "tcp:8080:interface=127.0.0.1.example",
    "tcp:8080:interface=my.example",
    "tcp:8080:backlog=127",
    "tcp:8080:interface=127.0.0.1:interface=0.0.0.0",
    "tcp6:8080",
    r"tcp6:8080:interface=\:\:",
    r"tcp6:8080:interface=fe80\:\:1",
    "systemd:domain=INET:index=0",
]


@pytest.mark.parametrize("endpoint", BEYOND)
@pytest.mark.parametrize("written", ["'{}'", "{{endpoint: '{}'}}", "{{endpoint: '{}', insecure: false}}"])
def test_b11_plain_http_beyond_loopback_is_refused(endpoint, written):
    assert mistakes_of(build, TOP, f"listen: [{written.format(endpoint)}]") == [
        "listen[0]: plain HTTP beyond loopback is not allowed; configure tls, or write {endpoint: ..., insecure: true}"
    ]


@pytest.mark.parametrize("endpoint", BEYOND)
def test_b11_beyond_loopback_takes_insecure_or_a_certificate(endpoint):
    insecure = build(TOP, f"listen: [{{endpoint: '{endpoint}', insecure: true}}]")
    assert insecure.listeners == (Listener(endpoint, insecure=True),)
    assert build(TOP, f"listen: ['{endpoint}']\n{TLS}").listeners == (Listener(endpoint, insecure=False),)


def test_b11_insecure_holds_for_its_own_listener_only():
    fragment = "listen: [{endpoint: 'tcp:80', insecure: true}, 'tcp:81', 'unix:/a', {endpoint: 'tcp:82'}]"
    assert [mistake.split(": ")[0] for mistake in mistakes_of(build, TOP, fragment)] == ["listen[1]", "listen[3]"]


@pytest.mark.parametrize("endpoint", ["ssl:443", "tls:443", "onion:80", "8080", "", "TCP:80", "stdio:", "fd:3"])
def test_b11_only_endpoints_that_can_carry_our_tls_are_served(endpoint):
    (mistake,) = mistakes_of(build, TOP, f"listen: [{{endpoint: '{endpoint}', insecure: true}}]")
    assert mistake.startswith("listen[0].endpoint: ")
    assert " is not an endpoint; write tcp:PORT:interface=ADDRESS" in mistake


@pytest.fixture
def credentials(tmp_path):
    """A $CREDENTIALS_DIRECTORY with a certificate, and one without."""
    for name in ("full", "bare"):
        (tmp_path / name).mkdir()
    for name in ("tls.crt", "tls.key"):
        (tmp_path / "full" / name).write_text("pem")
    return tmp_path


@pytest.mark.parametrize(
    ("in_file", "environ", "expected"),
    [
        # the file, TLS_CERT_FILE, TLS_KEY_FILE and CREDENTIALS_DIRECTORY -> certificate and key
        ("", ("", "", ""), None),
        (TLS, ("", "", ""), ("/cfg/a", "/cfg/b")),
        ("", ("/e/c", "/e/k", ""), ("/e/c", "/e/k")),
        ("", ("", "", "full"), ("full/tls.crt", "full/tls.key")),
        ("", ("", "", "bare"), None),
        ("", ("", "", "gone"), None),
        (TLS, ("/e/c", "/e/k", "full"), ("/cfg/a", "/cfg/b")),
        (TLS, ("", "", "full"), ("/cfg/a", "/cfg/b")),
        ("", ("/e/c", "/e/k", "full"), ("/e/c", "/e/k")),
        ("tls: null", ("/e/c", "/e/k", ""), ("/e/c", "/e/k")),
        ("tls: {cert_file: /x/a, key_file: ../b}", ("", "", ""), ("/x/a", "/cfg/../b")),
        ("tls: {cert_file: '${C}', key_file: b}", ("", "", ""), ("/var/c", "/cfg/b")),
    ],
)
def test_b11_the_certificate_is_the_files_else_the_variables_else_systemds(credentials, in_file, environ, expected):
    cert, key, directory = environ
    variables = {"TLS_CERT_FILE": cert, "TLS_KEY_FILE": key, "CREDENTIALS_DIRECTORY": directory, "C": "/var/c"}
    if directory:
        variables["CREDENTIALS_DIRECTORY"] = str(credentials / directory)
    tls = build(TOP, in_file or "{}", {**KEYS, **variables}).tls
    assert tls == (expected and TlsFiles(*(str(credentials / name) for name in expected)))


@pytest.mark.parametrize("source", ["variables", "systemd"])
def test_b11_a_certificate_from_the_environment_lets_listeners_beyond_loopback(credentials, source):
    environ = {
        "variables": {"TLS_CERT_FILE": "/c", "TLS_KEY_FILE": "/k"},
        "systemd": {"CREDENTIALS_DIRECTORY": str(credentials / "full")},
    }[source]
    assert build(TOP, "listen: ['tcp:443']", {**KEYS, **environ}).listeners[0].endpoint == "tcp:443"
    bare = {**KEYS, "CREDENTIALS_DIRECTORY": str(credentials / "bare")}
    assert len(mistakes_of(build, TOP, "listen: ['tcp:443']", bare)) == 1


@pytest.mark.parametrize("set_", ["TLS_CERT_FILE", "TLS_KEY_FILE"])
@pytest.mark.parametrize("other", [{}, {"TLS_CERT_FILE": "", "TLS_KEY_FILE": ""}])
def test_b11_half_a_certificate_in_the_environment_is_a_mistake(credentials, set_, other):
    environ = {**KEYS, "CREDENTIALS_DIRECTORY": str(credentials / "full"), **other, set_: "/a"}
    assert mistakes_of(build, environ=environ) == [
        "only one of the environment variables TLS_CERT_FILE and TLS_KEY_FILE is set; set both or neither"
    ]


# Relative names.


def test_names_in_the_file_are_relative_to_the_file_and_those_in_the_environment_to_us(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    in_file = build(PROVIDER, "ca_file: ca/my.pem", folder="/etc/x").providers["one"].ca_file
    assert in_file == "/etc/x/ca/my.pem"
    assert build(PROVIDER, "ca_file: /ca/my.pem", folder="/etc/x").providers["one"].ca_file == "/ca/my.pem"
    environ = {**KEYS, "TLS_CERT_FILE": "c.pem", "TLS_KEY_FILE": "./k.pem"}
    tls = build(environ=environ, folder="/etc/x").tls
    assert (tls.cert_file, tls.key_file) == (f"{tmp_path}/cwd/c.pem", f"{tmp_path}/cwd/k.pem")


@pytest.mark.parametrize("name", ["config.yaml", "./config.yaml", "sub/../config.yaml"])
def test_names_in_the_file_stay_right_when_the_daemon_changes_its_directory(tmp_path, monkeypatch, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / "ca.pem").write_text("pem")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(merged(PROVIDER, "ca_file: ca.pem")))
    monkeypatch.chdir(tmp_path)
    ca_file = loader.load(loader.find(name), KEYS).providers["one"].ca_file
    monkeypatch.chdir("/")
    assert Path(ca_file).read_text() == "pem"


# F7


def test_f7_when_refused_is_that_of_the_route_then_that_of_the_file_then_the_endpoint_s():
    def routes(tree: dict) -> list[str | None]:
        return [route.when_refused for route in loader.build(tree, KEYS, Path("/cfg")).routes.values()]

    steps = [{"provider": "one", "model": "m"}]
    tree = {
        "api_key": "a-gateway-key-of-a-good-length",
        "providers": [{"name": "one", "base_url": "https://one.example/v1"}],
        "routes": [{"name": "a", "steps": steps}, {"name": "b", "steps": steps, "when_refused": "report"}],
    }
    assert routes(tree) == [None, "report"]
    assert routes({**tree, "when_refused": "pass_on"}) == ["pass_on", "report"]


# Anything at all.

NAMES = """
    api_key providers routes port listen tls default_timeout connect_timeout idle_timeout cooldown limits body name
    connections connections_per_address base_url headers ca_file steps provider model timeout conflict_resolution deadline endpoint insecure cert_file
    key_file Authorization <<
""".split()
WORDS = r"""
    one two r https://a.example/v1 ${GATEWAY_API_KEY} ${NOPE} ${ ${} tools format 300s 0s 32MiB tcp:80 8080 true null
    tcp:80:interface=127.0.0.1 tcp6:80:interface=\:\:1 tcp:80:interface=\ unix:/a systemd: https://[
    http://a:b@c?d#e 127.0.0.1
""".split()
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, -1, 0.0])
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(WORDS)
    | st.dates()
    | st.datetimes()
    | st.binary(max_size=5)
    | st.sets(st.integers(), max_size=2)
)
MEMBERS = st.sampled_from(NAMES) | LEAVES.filter(lambda leaf: leaf.__hash__ is not None)
TREES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(MEMBERS, below, max_size=4),
    max_leaves=20,
)
PATHS = [
    *[(name,) for name in NAMES if name != "<<"],
    *[(*place, name) for place in (PROVIDER, ROUTE, STEP) for name in NAMES],
    *[("providers", 0), ("routes", 0), ("routes", 0, "steps", 1), ("listen", "0"), ("limits", "body")],
]
TOKENS = [
    *""": - , [ ] { } & * ! !! | > ' " % @ ` # ? << &a *a &b *b !!bool !!int !!float !!timestamp !!set""".split(),
    *"!!omap !!binary !!null !!pairs !!str !x ~ 0x 0b 0o 1:2 1_ 2020-13-45 .nan -.inf y --- ...".split(),
    *["\n", "\n  ", "\n- ", " ", ": ", "- ", "? ", "\t", "\\", "\x00", "\ufeff", "\u2028", "é", "a", "b: "],
    *NAMES,
]
QUICK = {"examples": (60, 300), "database": None, "derandomize": True}


def usable_or_refused(call, *args):
    """Loads, or raises ConfigError with mistakes that can be printed; any other exception is the test's failure."""
    try:
        routes, mistakes = call(*args).routes, []
    except ConfigError as error:
        routes, mistakes = {}, error.mistakes
    assert routes or mistakes
    assert all(isinstance(mistake, str) and ": " in mistake for mistake in mistakes)


@given(TREES, **QUICK)
@example({"providers": [{"headers": 5}]})
def test_b2_any_tree_is_usable_or_refused(tree):
    usable_or_refused(loader.build, tree, KEYS, Path("/cfg"))


@given(st.sampled_from(PATHS), TREES, **QUICK)
@example(("headers",), {"a": 1})
@example((*PROVIDER, "headers"), True)
@example(("cooldown",), False)
@example(("cooldown",), 0.0)
def test_b2_a_good_file_with_anything_in_one_place_is_usable_or_refused(path, value):
    tree = copy.deepcopy(GOOD)
    target = tree
    for name in path[:-1]:
        target = target.setdefault(name, {}) if isinstance(target, dict) else target[name]
    target[path[-1]] = value
    usable_or_refused(loader.build, tree, KEYS, Path("/cfg"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("garbage") / "config.yaml"


@given(st.lists(st.sampled_from(TOKENS), max_size=12).map(" ".join) | st.text(max_size=30), **QUICK)
@example("a: !!bool x")
@example("a: !!int ''")
@example("a: !!timestamp x")
@example("a: &a [*a]")
def test_b2_any_text_is_usable_or_refused(scratch, text):
    scratch.write_bytes(text.encode("utf-8", "surrogatepass"))
    usable_or_refused(loader.load, scratch, KEYS)


@given(st.binary(max_size=30), **QUICK)
def test_b2_any_bytes_are_usable_or_refused(scratch, data):
    scratch.write_bytes(data)
    usable_or_refused(loader.load, scratch, KEYS)
