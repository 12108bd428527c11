"""Mistakes of a configuration and warnings about one: B20 to B23, and what D4 says of a stream that is ASCII only."""

from __future__ import annotations

import time
from typing import Annotated

import msgspec
import pytest

from aigw.config import loader, model
from aigw.config.reader import Reader
from aigw.errors import ConfigError
from aigw.protocols import endpoints
from aigw.settings.addresses import ENDPOINTS, is_private_host
from aigw.settings.quoting import similar
from aigw.settings.schema import Inherited, settings, shape_of
from aigw.settings.values import Retries, Timeout
from tests.test_daemon import KEYS, run

GOOD = """\
api_key: a-gateway-key-of-a-good-length
providers:
  - name: cerebras
    base_url: https://api.example/v1
    api_key: a-key-for-cerebras
routes:
  - name: r
    steps:
      - provider: cerebras
        model: m
"""


@pytest.fixture(autouse=True)
def failures():
    """In place of conftest's, which collects garbage after each test: nothing here uses Twisted."""


@pytest.fixture
def load(tmp_path):
    """The warnings about a text, or its mistakes, without the folder of the file."""

    def load(text, environ=None):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        path.chmod(0o600)
        try:
            return list(loader.load(path, environ or {}, "config.yaml").warnings)
        except ConfigError as error:
            return error.mistakes

    return load


def changed(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


# B20: file, line, path, value, and what is meant


def test_b20_a_good_file_has_neither_mistakes_nor_warnings(load):
    assert load(GOOD) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD + "        time_out: 5\n", "line 11: routes[0].steps[0].time_out: unknown setting; did you mean timeout? K"),
        (GOOD + "        Timeout: 5\n", "line 11: routes[0].steps[0].Timeout: unknown setting; did you mean timeout? K"),
        (GOOD + "listn: []\n", "line 11: listn: unknown setting; did you mean listen? K"),
        (GOOD + "limits: {bodys: 1}\n", "line 11: limits.bodys: unknown setting; did you mean body? K"),
        (GOOD + "timeout: 5\n", "line 11: timeout: unknown setting; at the top of the file its name is default_timeout"),
        (GOOD + "        default_timeout: 5\n", "default_timeout: unknown setting; its name is timeout except at the top"),
        (GOOD + "        deadline: 5\n", "steps[0].deadline: unknown setting here; deadline belongs in routes[]"),
        (GOOD + "colour: red\n", "line 11: colour: unknown setting; known here: api_key, providers"),
        (changed("base_url", "url"), "line 4: providers[0].url: unknown setting; did you mean base_url? K"),
        (changed("provider: cer", "provider: Cer"), "named 'Cerebras'; there are: cerebras; did you mean cerebras?"),
        (changed("provider: cerebras", "provider: cerbras"), "line 9: routes[0].steps[0].provider: no provider is named"),
        (GOOD + "        conflict_resolution: tool\n", "line 11: routes[0].steps[0].conflict_resolution: 'tool' is unknown; "
         "write tools or format; did you mean tools?"),
        (GOOD + "tls: {cert_file: a, key_file: b, client_ca: c, client_certificate: require}\n", "did you mean required?"),
        (GOOD + "        timeout: 5 min\n", "line 11: routes[0].steps[0].timeout: '5 min' is not a duration"),
        (GOOD + "port: 80800\n", "line 11: port: 80800 is not a port"),
        (GOOD + "port:\n", "line 11: port: an empty value is not a port"),
        (GOOD + "limits:\n  body: [1]\n", "line 12: limits.body: a list is not a size"),
        (GOOD + "        timeout: ${T}\n", "line 11: routes[0].steps[0].timeout: the value of '${T}' is not a duration"),
        (GOOD + "        timeout: sk-secret\n", "line 11: routes[0].steps[0].timeout: the value is not a duration"),
        (changed("model: m", "retries: 1"), "line 9: routes[0].steps[0].model: is required and missing"),
        (changed("a-key-for-cerebras", "${CEREBRAS_KEY}"), "CEREBRAS_KEY is not set; did you mean CEREBRAS_API_KEY?"),
    ],
)  # fmt: skip
def test_b20_a_mistake_has_file_line_path_value_and_the_name_that_is_meant(load, text, expected):
    mistake, *more = load(text, {"T": "from-the-environment", "CEREBRAS_API_KEY": "x"})
    assert [each for each in more if "is required and missing" not in each] == []
    assert mistake.startswith("config.yaml, line ")
    assert expected in mistake
    assert "from-the-environment" not in mistake


@pytest.mark.parametrize("name", [r"a\x1b[2Jb", r"a\nb", r"a\u202eb", r"a\ufeffb"])
def test_b20_a_character_that_is_not_seen_is_shown_as_its_escape(load, name):
    texts = [
        f'{GOOD}"{name}": 1\n',
        changed("provider: cerebras", f'provider: "{name}"'),
        changed("routes:", f'    headers: {{"{name}": 1}}\nroutes:'),
        changed("model: m", f'timeout: "{name}"'),
    ]
    mistakes = [mistake for text in texts for mistake in load(text)]
    assert len(mistakes) >= len(texts)
    assert [each for each in mistakes if not each.isprintable()] == []


def test_b20_a_file_that_is_not_there_is_named_with_the_line_of_its_setting_too(tmp_path):
    text = changed("routes:", "    ca_file: ca.pem\nroutes:")
    text += "tls:\n  cert_file: none.pem\n  key_file: none.key\n  certificates:\n    - cert_file: a.pem\n      key_file: b.pem\n"
    done = run(tmp_path, "--check-config", config=text)
    assert done.returncode == 78
    assert [line.strip().split(": ")[:2] for line in done.stderr.splitlines()[1:]] == [
        ["config.yaml, line 16", "tls.certificates[0].cert_file"],
        ["config.yaml, line 17", "tls.certificates[0].key_file"],
        ["config.yaml, line 13", "tls.cert_file"],
        ["config.yaml, line 14", "tls.key_file"],
        ["config.yaml, line 6", "providers[0].ca_file"],
    ]


def test_b20_names_in_other_places_are_not_found_by_chance():
    assert similar("colour", ["cooldown", "connect_timeout"]) is None
    assert similar("x", ["xy"]) is None


def test_b20_the_line_is_that_of_a_merged_or_aliased_entry_too(load):
    text = GOOD + "  - name: s\n    steps: [&a {provider: cerebras, model: m, timeout: x}]\n"
    text += "  - name: t\n    steps:\n      - <<: *a\n        retries: y\n"
    assert [mistake.split(": ")[0:2] for mistake in load(text)] == [
        ["config.yaml, line 12", "routes[1].steps[0].timeout"],
        ["config.yaml, line 12", "routes[2].steps[0].timeout"],
        ["config.yaml, line 16", "routes[2].steps[0].retries"],
    ]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('a: 1\nb: "x\nc: 2\n', 2, "a quote opens on this line and is not closed"),
        ("a: 1\nb: 'x\nc: 2\nd: 'y'\n", 2, "a quote that opens on this line ends only on line 4"),
        ('a: "x\nb: 1\nc: "y"\nd: 2\n', 1, "a quote that opens on this line ends only on line 3"),
        ("a: 1\nb: [1, 2\nc: 2\n", 2, "a [ opens on this line and is not closed by a ]"),
        ("a: 1\nb: {c: 1\nd: 2\n", 2, "a { opens on this line and is not closed by a }"),
        ("api_keys: [${X}]\n", 1, 'in [...] and {...} use quotes: write "${NAME}"'),
        ("a: [b,\n  ${X}]\n", 2, 'write "${NAME}"'),
        ("a: {headers: {X-A: Bearer ${X}}}\n", 1, 'write "${NAME}"'),
        ("a: @x\n", 1, "write the value in quotes"),
        ("a: !x y\n", 1, "write the value in quotes"),
        ("a:\n  b: 1\n c: 2\n", 3, "this line does not fit the lines before it"),
        ("a:\n\t- 1\n", 2, "indent with spaces"),
        ("a: 1\nb: \x01\n", 2, "control character"),
    ],
)
def test_b20_a_mistake_of_syntax_names_the_line_where_it_begins(load, text, line, words):
    (mistake,) = load(text)
    assert mistake.startswith(f"config.yaml, line {line}: ")
    assert words in mistake


# B21: values that cannot work


@pytest.mark.parametrize(
    "end", ["/chat/completions", "/completions/", "/responses", "/embeddings", "/Chat/Completions"]
)
def test_b21_a_base_url_that_ends_in_an_endpoint_is_refused_with_what_is_right(load, end):
    (mistake,) = load(changed("example/v1", f"example/openai/v1{end}"))
    assert mistake.startswith("config.yaml, line 4: providers[0].base_url: ")
    assert mistake.endswith("write a URL that ends in /openai/v1")


def test_b21_every_endpoint_of_the_gateway_is_such_an_end():
    assert {f"/{path}" for path in endpoints.ENDPOINTS} <= set(ENDPOINTS)


def test_b21_a_base_url_may_end_in_models(load):
    assert load(changed("example/v1", "example/models")) == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_u6_an_underscore_in_a_host_is_good(load, scheme):
    assert load(changed("https://api.example", f"{scheme}://my_llm")) == []


@pytest.mark.parametrize("written", ["'...'", "'........'", "'***'", "'_'", "${DOTS}"])
@pytest.mark.parametrize("key", ["a-gateway-key-of-a-good-length", "a-key-for-cerebras"])
def test_b21_a_key_of_dots_is_refused(load, key, written):
    (mistake,) = load(changed(key, written), {"DOTS": "..."})
    assert "has no letter and no digit" in mistake


def test_b21_a_folder_is_named_as_one(tmp_path):
    with pytest.raises(ConfigError, match=r"this is a folder; name a file with -c FILE, for example .*/config.yaml"):
        loader.find(str(tmp_path))


# B22: warnings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed("https://", "http://"), "line 4: providers[0].base_url: sends a key unencrypted (http://)"),
        (GOOD + "        timeout: 30000\n", "line 11: routes[0].steps[0].timeout: 30000 is 30000 seconds, more than an hour"),
        (GOOD + "default_timeout: 2h\n", "line 11: default_timeout: '2h' is 7200 seconds, more than an hour"),
        (changed("a-key-for-cerebras", "os.environ/CEREBRAS_API_KEY"), "line 5: providers[0].api_key: the value seems to name"),
        (changed("a-key-for-cerebras", "'\"sk-abcdefgh\"'"), 'line 5: providers[0].api_key: the value begins and ends with a quote (")'),
        (changed("a-key-for-cerebras", "${Q}"), "line 5: providers[0].api_key: the value begins and ends with a quote (')"),
        (changed("a-key-for-cerebras", "Bearer sk-abcdefgh"), "line 5: providers[0].api_key: the value begins with 'Bearer'"),
        (changed("a-gateway-key-of", "bearer a-gateway-key-of"), "line 1: api_key: the value begins with 'bearer'"),
        (changed("a-key-for-cerebras", "sk-abcdefgh..."), "line 5: providers[0].api_key: the value ends in dots"),
        (GOOD + "    deadline: 10s\n", "line 11: routes[0].deadline: is 10s, which is less than the timeout of the first step (300s)"),
        (changed("routes:", "  - {name: spare, base_url: 'https://b.example'}\nroutes:"), "line 6: providers[1]: no route uses"),
        (GOOD + "      - {provider: cerebras, model: m}\n", "line 11: routes[0].steps[1]: is the same as step 1"),
        (GOOD + "    hedge: {after: 3s}\n", "line 11: routes[0].hedge: has no effect on a route with one step"),
        (GOOD + "      - {provider: cerebras, model: n}\n    hedge: {after: 5m}\n", "line 12: routes[0].hedge.after: is 300s, and the timeout"),
        (changed("routes:", "    headers: {authorization: Bearer abcdefgh}\nroutes:"), "line 6: providers[0].headers."
         "authorization: is sent instead of api_key"),
    ],
)  # fmt: skip
def test_b22_what_is_hardly_meant_is_warned_of(load, text, expected):
    (warning,) = load(text, {"Q": "'sk-abcdefgh'"})
    assert f"config.yaml, {expected}" in warning
    assert "abcdefgh" not in warning


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "        timeout: 1h\n",
        GOOD + "    deadline: 300s\n",
        GOOD + "      - {provider: cerebras, model: n}\n    hedge: {after: 299s}\n",
        GOOD + "      - {provider: cerebras, model: m, conflict_resolution: tools}\n",
        changed("https://api.example", "http://localhost:11434"),
        changed("    api_key: a-key-for-cerebras\n", "").replace("https", "http"),
        changed("    api_key: a-key-for-cerebras\n", "    headers: {Authorization: Basic abcdefgh}\n"),
        changed("routes:", "    headers: {x-goog-api-key: abcdefgh}\nroutes:"),
    ],
)
def test_b22_what_may_be_meant_is_not_warned_of(load, text):
    assert load(text) == []


@pytest.mark.parametrize(
    ("hosts", "private"),
    [
        ("localhost a.localhost 127.0.0.1 ::1 10.1.2.3 172.16.0.1 192.168.1.1 fd00::1 fe80::1 100.64.1.1 ::ffff:10.0.0.1 ollama "
         "llm.internal host.docker.internal LLM.Local. nas.lan", True),
        ("8.8.8.8 2001:4860:4860::8888 api.example.com local.example internal.example ::ffff:8.8.8.8", False),
    ],
)  # fmt: skip
def test_b22_which_hosts_are_private(hosts, private):
    assert [host for host in hosts.split() if is_private_host(host) is not private] == []


# B23: one definition, quick


class _Step(model.Step, frozen=True):
    patience: Annotated[Timeout, Inherited(7.0, top="default_patience")] = 0.0
    tries: Retries = 3


class _Route(msgspec.Struct, frozen=True):
    steps: tuple[_Step, ...]


class _File(msgspec.Struct, frozen=True):
    providers: dict[str, model.Provider]
    routes: tuple[_Route, ...]


@pytest.mark.parametrize(
    ("top", "route", "step", "expected"),
    [({}, {}, {}, 7), ({"default_patience": 1}, {}, {}, 1), ({"default_patience": 1}, {"patience": "2s"}, {}, 2),
     ({"default_patience": 1}, {"patience": 2}, {"patience": 3}, 3), ({}, {"patience": None}, {}, 7)],
)  # fmt: skip
def test_b23_a_new_setting_of_a_step_is_one_line(tmp_path, top, route, step, expected):
    """Its value, default, unit and where it may be written all come from the annotation of one field."""
    shape = shape_of(_File)
    reader = Reader(shape, tmp_path)
    steps = [{"provider": "p", "model": "m", **step}]
    tree = {"providers": [{"name": "p", "base_url": "http://p"}], "routes": [{"steps": steps, **route}], **top}
    read = reader.read(tree)
    assert reader.mistakes == []
    (made,) = read.routes[0].steps
    assert (made.patience, made.tries, made.provider.name) == (expected, 3, "p")
    paths = {path for path, _ in settings(shape)}
    assert {"default_patience", "routes[].patience", "routes[].steps[].patience", "routes[].steps[].tries"} <= paths
    assert not {"patience", "tries", "routes[].tries"} & paths


def test_b23_2_000_routes_load_within_2_seconds_of_cpu_time(load):
    """Measured 0.7 s; with PyYAML's own parser, which read the file twice, it was 7."""
    more = "".join(
        f"  - name: route/{n}\n    deadline: 10m\n    steps:\n      - {{provider: cerebras, model: m{n}, timeout: 30s}}\n"
        "      - provider: cerebras\n        model: other\n"
        for n in range(2000)
    )
    begun = time.process_time()
    assert load(GOOD + more) == []
    assert time.process_time() - begun < 2


# D4


def test_d4_check_config_prints_any_name_on_a_stream_that_is_ascii_only(tmp_path):
    names = ["модель", "ключ-é"]
    routes = GOOD.partition("routes:\n")[2]
    text = GOOD.replace(routes, "".join(routes.replace("name: r", f"name: {name}") for name in names))
    ascii_only = {**KEYS, "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = run(tmp_path, "--check-config", config=text, environ=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    for name in names:
        assert f"route {name.encode('ascii', 'backslashreplace').decode()}\n" in done.stdout
    wrong = "".join(routes + f"        conflict_resolution: {name}\n" for name in names)
    done = run(tmp_path, "--check-config", config=text + wrong, environ=ascii_only)
    assert done.returncode == 78
    assert done.stderr.count("conflict_resolution") >= len(names)
    assert "Traceback" not in done.stderr
