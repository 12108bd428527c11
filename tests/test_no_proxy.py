"""P2, P3: which provider is called through which proxy. Only the configuration is read: no connection is opened."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from aigw.config import loader
from aigw.config.no_proxy import NoProxy
from aigw.config.proxies import described, proxy, with_proxies
from aigw.daemon.systemd import Environment
from aigw.errors import ConfigError
from tests.harness import KEY

PROXY = "http://proxy.example:3128"

NO_PROXY = [  # NO_PROXY, the host and port of the provider, whether it is called without the proxy
    # an exact host
    ("api.example", "api.example", 443, True),
    ("API.Example", "api.example", 443, True),
    ("api.example.", "api.example", 443, True),
    ("api.example", "api.example.", 443, True),
    ("example", "api.example", 443, False),
    ("api.example", "v2.api.example", 443, False),
    ("api.example", "other-api.example", 443, False),
    ("bücher.example", "xn--bcher-kva.example", 443, True),
    (".BÜCHER.example", "api.xn--bcher-kva.example", 443, True),
    ("*.bücher.example:443", "api.xn--bcher-kva.example", 443, True),
    (".bücher.example", "xn--bcher-kva.example", 443, False),
    # a suffix
    (".example", "api.example", 443, True),
    (".example", "v2.api.example", 443, True),
    (".api.example", "api.example", 443, False),
    (".example", "api-example", 443, False),
    ("*.example", "api.example", 443, True),
    ("*.example", "v2.api.example", 443, True),
    ("*.api.example", "api.example", 443, False),
    ("*api.example", "my-api.example", 443, False),
    (".", "api.example", 443, False),
    # everything
    ("*", "api.example", 443, True),
    ("other.example, *", "api.example", 443, True),
    ("*", "192.0.2.7", 443, True),
    # a port
    ("api.example:443", "api.example", 443, True),
    ("api.example:8443", "api.example", 443, False),
    (".example:8443", "api.example", 8443, True),
    ("*:8443", "api.example", 8443, True),
    ("*:8443", "api.example", 443, False),
    ("192.0.2.7:80", "192.0.2.7", 80, True),
    ("192.0.2.7:80", "192.0.2.7", 81, False),
    ("[2001:db8::7]:8443", "2001:db8::7", 8443, True),
    ("[2001:db8::7]:8443", "2001:db8::7", 443, False),
    # an address
    ("192.0.2.7", "192.0.2.7", 443, True),
    ("192.0.2.7", "192.0.2.70", 443, False),
    ("192.0.2.7", "api.example", 443, False),
    ("2001:db8:0:0::7", "2001:db8::7", 443, True),
    ("[2001:db8::7]", "2001:db8::7", 443, True),
    ("192.0.2.7", "::ffff:192.0.2.7", 443, True),
    (".2.7", "192.0.2.7", 443, False),
    # a network
    ("10.0.0.0/8", "10.200.3.4", 443, True),
    ("10.1.2.3/8", "10.200.3.4", 443, True),
    ("10.0.0.0/8", "11.0.0.1", 443, False),
    ("192.0.2.0/30", "192.0.2.3", 443, True),
    ("192.0.2.0/30", "192.0.2.4", 443, False),
    ("2001:db8::/32", "2001:db8:1::5", 443, True),
    ("2001:db8::/32", "192.0.2.7", 443, False),
    ("0.0.0.0/0", "192.0.2.7", 443, True),
    ("10.0.0.0/8:8443", "10.0.0.1", 8443, True),
    # several, and nonsense
    ("a.example,api.example", "api.example", 443, True),
    ("a.example api.example", "api.example", 443, True),
    (" a.example ,\tapi.example, ", "api.example", 443, True),
    ("", "api.example", 443, False),
    (",, ,", "api.example", 443, False),
    ("10.0.0.0/33", "10.0.0.1", 443, False),
    ("10.0.0.0/x", "10.0.0.1", 443, False),
    ("https://api.example", "api.example", 443, False),
    ("api.example:port", "api.example", 443, False),
]


def config(*base_urls: str, environ: dict[str, str] | None = None, own: dict | None = None, **top: object):
    """The configuration with a provider ``p1`` ... for each URL; ``own`` are settings of each of them."""
    names = [f"p{number}" for number in range(1, len(base_urls) + 1)]
    tree = {
        "api_key": KEY,
        "providers": [
            {"name": name, "base_url": url, **(own or {})} for name, url in zip(names, base_urls, strict=True)
        ],
        "routes": [{"name": "route", "steps": [{"provider": name, "model": "m"} for name in names]}],
        **top,
    }
    return loader.build(tree, environ or {}, Path("/nonexistent"))


def proxies(*base_urls: str, **more: object) -> list[str]:
    return [described(each.proxy) for each in config(*base_urls, **more).providers.values()]


def mistakes(*base_urls: str, **more: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        config(*base_urls, **more)
    return raised.value.mistakes


@pytest.mark.parametrize(("written", "host", "port", "direct"), NO_PROXY)
def test_p3_no_proxy(written, host, port, direct):
    assert NoProxy(written).has(host, port) is direct
    in_brackets = f"[{host}]" if ":" in host else host
    used = proxies(f"https://{in_brackets}:{port}/v1", environ={"https_proxy": PROXY, "no_proxy": written})
    assert used == ["none" if direct else f"{PROXY} (https_proxy)"]


HTTPS, HTTP = "https://api.example/v1", "http://llm.example:8000/v1"
VARIABLES = [  # the environment, and the proxies of a provider over https and one over plain HTTP
    ({}, ["none", "none"]),
    ({"https_proxy": "http://a:1"}, ["http://a:1 (https_proxy)", "none"]),
    ({"http_proxy": "http://a:1"}, ["none", "http://a:1 (http_proxy)"]),
    ({"all_proxy": "http://a:1"}, ["http://a:1 (all_proxy)", "http://a:1 (all_proxy)"]),
    ({"all_proxy": "http://a:1", "http_proxy": "http://b:2"}, ["http://a:1 (all_proxy)", "http://b:2 (http_proxy)"]),
    ({"HTTPS_PROXY": "http://a:1"}, ["http://a:1 (HTTPS_PROXY)", "none"]),
    ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}, ["http://b:2 (https_proxy)", "none"]),
    ({"HTTPS_PROXY": "http://a:1", "https_proxy": ""}, ["none", "none"]),
    ({"https_proxy": "", "all_proxy": "http://a:1"}, ["http://a:1 (all_proxy)", "http://a:1 (all_proxy)"]),
    ({"HTTP_PROXY": "http://a:1"}, ["none", "http://a:1 (HTTP_PROXY)"]),
    ({"HTTP_PROXY": "http://a:1", "REQUEST_METHOD": "GET"}, ["none", "none"]),  # as a CGI script (CVE-2016-5385)
    ({"http_proxy": "http://a:1", "REQUEST_METHOD": "GET"}, ["none", "http://a:1 (http_proxy)"]),
    ({"HTTPS_PROXY": "http://a:1", "REQUEST_METHOD": "GET"}, ["http://a:1 (HTTPS_PROXY)", "none"]),
    ({"ALL_PROXY": "http://a:1", "NO_PROXY": "llm.example"}, ["http://a:1 (ALL_PROXY)", "none"]),
    ({"ALL_PROXY": "http://a:1", "NO_PROXY": "*", "no_proxy": ""}, ["http://a:1 (ALL_PROXY)"] * 2),
    ({"https_proxy": "proxy:3128"}, ["http://proxy:3128 (https_proxy)", "none"]),
    ({"https_proxy": " http://proxy:3128/ "}, ["http://proxy:3128 (https_proxy)", "none"]),
    ({"https_proxy": "https://proxy:3128"}, ["https://proxy:3128 (https_proxy)", "none"]),
    ({"http_proxy": "https://u:p@proxy"}, ["none", "https://proxy:443 (http_proxy)"]),
    ({"https_proxy": "https://127.1:3128"}, ["https://127.0.0.1:3128 (https_proxy)", "none"]),
    ({"https_proxy": "http://proxy"}, ["http://proxy:80 (https_proxy)", "none"]),
    ({"https_proxy": "http://[2001:db8::1]:3128"}, ["http://[2001:db8::1]:3128 (https_proxy)", "none"]),
    ({"https_proxy": "http://u:p@proxy:3128"}, ["http://proxy:3128 (https_proxy)", "none"]),
    ({"http_proxy": "http://a:1", "all_proxy": "socks5://b:2", "https_proxy": "http://a:1"},
     ["http://a:1 (https_proxy)", "http://a:1 (http_proxy)"]),
]  # fmt: skip


@pytest.mark.parametrize(("environ", "used"), VARIABLES)
def test_p2_the_variables_of_the_environment(environ, used):
    assert proxies(HTTPS, HTTP, environ=environ) == used


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "llm.localhost", "127.0.0.1", "127.8.9.1", "[::1]", "[::ffff:127.0.0.1]",
     "0.0.0.0", "[::]", "127.1", "0x7f.1", "2130706433"],
)  # fmt: skip
@pytest.mark.parametrize("top", [{}, {"proxy": PROXY}, {"own": {"proxy": PROXY}}])
def test_p3_this_machine_is_never_called_through_a_proxy(host, top):
    environ = {"http_proxy": PROXY}
    made = config(f"http://{host}:11434/v1", environ=environ, **top)
    assert [each.proxy for each in made.providers.values()] == [None]
    said = (
        "providers[0].proxy: has no effect: the provider is on this machine, which is never called through a proxy; "
        "remove it"
    )
    assert [each for each in made.warnings if "proxy" in each] == ([said] if "own" in top else [])


@pytest.mark.parametrize(
    "url", ["http+unix:///run/x.sock:/v1", "http+unix://%2Frun%2Fx.sock/v1", "http+unix:/run/x.sock"]
)
@pytest.mark.parametrize("own", [{}, {"proxy": "env"}, {"proxy": PROXY}])
def test_p3_a_unix_socket_is_never_called_through_a_proxy(url, own):
    environ = {"http_proxy": PROXY, "all_proxy": PROXY}
    for top in ({}, {"proxy": PROXY}):
        tree, mistakes, warnings = with_proxies({"providers": [{"base_url": url, **own}], **top}, environ)
        assert proxy(tree["providers"][0]["proxy"]) is None
        assert (mistakes, len(warnings)) == ([], 1 if own == {"proxy": PROXY} else 0)


def test_p2_a_variable_may_be_a_credential_of_systemd(tmp_path):
    (tmp_path / "keys_https_proxy").write_text("http://u:p@a:1\n")
    environ = Environment({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert proxies(HTTPS, environ=environ) == ["http://a:1 (https_proxy)"]


def test_p1_a_provider_before_the_top_before_the_environment():
    environ = {"https_proxy": "http://a:1", "no_proxy": "api.example"}
    assert proxies(HTTPS, environ=environ) == ["none"]
    assert proxies(HTTPS, environ=environ, proxy=PROXY) == [PROXY]  # NO_PROXY belongs to the variables
    assert proxies(HTTPS, environ=environ, proxy=PROXY, own={"proxy": "http://b:2"}) == ["http://b:2"]
    assert proxies(HTTPS, environ=environ, proxy=PROXY, own={"proxy": "none"}) == ["none"]
    assert proxies(HTTPS, environ={"https_proxy": "http://a:1"}, proxy="none") == ["none"]
    assert proxies(HTTPS, environ={"https_proxy": "http://a:1"}, proxy="none", own={"proxy": "env"}) == [
        "http://a:1 (https_proxy)"
    ]
    assert proxies(HTTPS, proxy="env") == ["none"]
    assert proxies(HTTPS, environ={"P": "http://c:3"}, proxy="${P}") == ["http://c:3"]
    assert proxies(HTTPS, environ={"https_proxy": "http://a:1"}, own={"proxy": None}) == ["http://a:1 (https_proxy)"]


USERS = [  # as written, and what Proxy-Authorization has (RFC 7617)
    ("http://proxy:1", None),
    ("http://@proxy:1", None),
    ("http://user:password@proxy:1", b"user:password"),
    ("http://user@proxy:1", b"user:"),
    ("http://us%40er:p%3Aw%2Fd%25@proxy:1", b"us@er:p:w/d%"),
    ("http://user:p@s/w?o#r:d@proxy:1", b"user:p@s/w?o#r:d"),
    ("http://user:p%C3%A4ss@proxy:1", "user:päss".encode()),
    ("http://user:päss@proxy:1", "user:päss".encode()),
    ("http://user:${PASSWORD}@proxy:1", b"user:from/the@environment"),
    ("HTTP://user:password@PROXY:1/", b"user:password"),
]


@pytest.mark.parametrize(("written", "sent"), USERS)
def test_p1_user_and_password(written, sent):
    made = config(HTTPS, proxy=written, environ={"PASSWORD": "from/the@environment"}).providers["p1"].proxy
    assert (made.host, made.port) == ("proxy", 1)
    if sent is None:
        assert made.authorization is None
    else:
        assert made.authorization.reveal() == f"Basic {base64.b64encode(sent).decode()}"
    assert "user" not in f"{made}{made!r}{described(made)}"


RIGHT = "write http://host:port or http://user:password@host:port"
WRONG = [
    ("proxy:3128", f"is not a proxy; {RIGHT}, env or none"),
    ("ENV", f"is not a proxy; {RIGHT}, env or none"),
    ("", f"is not a proxy; {RIGHT}, env or none"),
    (False, f"is not a proxy; {RIGHT}, env or none"),
    (3128, f"is not a proxy; {RIGHT}, env or none"),
    (["http://a:1"], f"is not a proxy; {RIGHT}, env or none"),
    ("socks5://proxy:1080", f"is a SOCKS proxy, which the gateway cannot use; {RIGHT} of an HTTP proxy"),
    ("ftp://proxy:21", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://:3128", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("https://10.0.0.300:3128", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://proxy:0", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://proxy:65536", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://proxy:port", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://proxy:3128/path", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://proxy:3128?x", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://pro xy:3128", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://proxy\r\nX: y:3128", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://[::1:3128", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://2001:db8::1:3128", f"is not the URL of an HTTP proxy; {RIGHT}"),
    ("http://us%3Aer:password@proxy:1", "has a colon in the user name, which no proxy can read (RFC 7617); write "
     "another user name"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "why"), WRONG)
def test_p1_what_is_no_proxy_is_a_mistake_that_shows_nothing_of_it(written, why):
    assert mistakes(HTTPS, HTTP, proxy=written) == [f"proxy: the value {why}"]
    assert mistakes(HTTPS, own={"proxy": written}) == [f"providers[0].proxy: the value {why}"]
    assert mistakes("http://127.0.0.1/v1", own={"proxy": written}) == [f"providers[0].proxy: the value {why}"]
    if isinstance(written, str) and "://" in written:
        assert mistakes(HTTPS, HTTPS.replace("api", "b"), environ={"HTTPS_PROXY": written}) == [
            f"the value of HTTPS_PROXY in the environment {why}; or write proxy: none"
        ]
        assert proxies(HTTPS, environ={"HTTPS_PROXY": written}, proxy="none") == ["none"]
        assert proxies("https://localhost/v1", environ={"HTTPS_PROXY": written}) == ["none"]
        assert proxies(HTTPS, environ={"HTTPS_PROXY": written, "no_proxy": ".example"}) == ["none"]


def test_p4_what_redaction_hides():
    def hidden(proxy: str) -> list[str]:
        return sorted(
            each.reveal() for each in config(HTTPS, HTTP, proxy=proxy).secrets if not each.matches(KEY.encode())
        )

    assert hidden("http://user:pass%77ord@proxy:1") == ["dXNlcjpwYXNzd29yZA==", "pass%77ord", "password"]
    assert hidden("http://token-of-the-user@proxy:1") == ["dG9rZW4tb2YtdGhlLXVzZXI6", "token-of-the-user"]
    assert hidden("http://u:p@proxy:1") == []  # too short to be searched for; it is never shown in the first place
    assert hidden("http://proxy:1") == []


@pytest.mark.parametrize(
    ("written", "refused"),
    [("http://u:literal@proxy:1", True), ("http://token@proxy:1", True), ("http://u:${P}@proxy:1", False),
     ("http://${U}@proxy:1", False), ("${PROXY}", False), ("http://proxy:1", False), ("env", False)],
)  # fmt: skip
@pytest.mark.parametrize("at_top", [True, False])
def test_b10_a_file_with_the_password_of_a_proxy_may_not_be_readable_by_others(tmp_path, written, refused, at_top):
    top, own = (f"proxy: {written}\n", "") if at_top else ("", f", proxy: '{written}'")
    path = tmp_path / "config.yaml"
    path.write_text(
        f"api_key: ${{K}}\n{top}providers: [{{name: p, base_url: 'https://api.example'{own}}}]\n"
        "routes: [{name: r, steps: [{provider: p, model: m}]}]\n"
    )
    path.chmod(0o644)
    environ = {"K": KEY, "P": "canary", "U": "canary", "PROXY": "http://u:canary@proxy:1"}
    if not refused:
        loader.load(path, environ)
        return
    with pytest.raises(ConfigError) as raised:
        loader.load(path, environ)
    assert raised.value.mistakes == [f"{path}: holds a key and is readable by every user; run: chmod 600 {path}"]
