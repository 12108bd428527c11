"""The house: which file may import which. Nothing imports upward, and pure files import neither twisted nor treq.

Beyond the table of the design: `schema`, `notation`, `consistency`, `document`, `permissions` and `secret` are what `config` was too large to hold, `key_forms` the same for `secret`, `envelope` and
`sse` the same for `openai`, `connection` and `framing` for `agent`, `client` for `upstream`, `answers` for `relay`, `channel`, `heads`, `grammar`, `request` and `admission` for `web`; `openfiles` is what
the kernel has to say on how many connections there may be, `heap` what the C library has to hear on memory; `headers`
is the one place that says which headers cross the gateway; `demo` is the demo. What shows the gateway is made of the records in `tally` and `history` and of the
moment in `live`; `metrics`, `status` and `tracing` put it in words, `watch` owns it, `admin` has the resources and `gates` who may look.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aigw"
PURE = "errors key_forms secret document permissions notation schema consistency config systemd envelope sse openai headers auth health routing records flood grammar heap usage history tally live metrics signin status pages trace spans addresses quoting dumpable log_writer log_file hostname validity overlap terminal init attempt walk skip".split()
MAY_IMPORT = {
    "errors": "",
    "key_forms": "",
    "secret": "key_forms",
    "systemd": "",
    "records": "",
    "headers": "",
    "sse": "",
    "skip": "",
    "walk": "skip",
    "envelope": "skip walk",
    "flood": "",
    "drain": "",
    "signals": "",
    "dial": "",
    "wire": "",
    "grammar": "",
    "chunks": "grammar",
    "heads": "chunks errors",
    "heap": "",
    "quoting": "",
    "document": "quoting",
    "permissions": "",
    "consistency": "quoting",
    "usage": "",
    "history": "",
    "log_writer": "",
    "logs": "flood log_writer",
    "pulse": "logs",
    "notation": "secret",
    "schema": "notation secret",
    "config": "consistency document errors notation permissions schema secret",
    "openai": "envelope errors skip sse walk",
    "auth": "config errors",
    "health": "config",
    "attempt": "config envelope",
    "routing": "attempt config errors health openai records secret",
    "framing": "",
    "connection": "errors framing wire",
    "validity": "",
    "tls": "config errors quoting validity",
    "lateness": "",
    "agent": "connection errors lateness tls",
    "openfiles": "",
    "addresses": "",
    "notices": "logs",
    "mismatch": "errors notices openai",
    "admission": "addresses errors logs mismatch notices openai openfiles",
    "overlap": "",
    "listeners": "admission config errors overlap tls",
    "client": "agent connection",
    "hostname": "",
    "trust": "hostname tls",
    "upstream": "agent attempt client config connection envelope errors headers lateness openai tls trust",
    "relay": "errors lateness openai usage",
    "answers": "connection errors openai relay sse usage",
    "gateway": "answers attempt config connection errors headers health openai records relay routing secret upstream",
    "bodies": "errors",
    "request": "bodies errors headers openai",
    "lifetime": "errors lateness request",
    "channel": "bodies chunks errors grammar headers heads lifetime openai request wire",
    "refused_keys": "addresses errors logs",
    "turns": "",
    "slices": "",
    "web": "admission auth bodies channel config errors gateway headers mismatch openai records refused_keys request slices turns",
    "trace": "records",
    "spans": "records trace usage",
    "otlp": "spans trace",
    "tracing": "logs otlp records spans trace",
    "tally": "config history records usage",
    "live": "config",
    "metrics": "live tally",
    "status": "config history live tally",
    "viewers": "errors",
    "signin": "config",
    "watch": "config errors live logs metrics records secret status tally trace tracing",
    "pages": "headers",
    "gates": "auth config errors request signin",
    "admin": "auth config errors gates headers pages request signin viewers watch web",
    "generation": "config errors listeners tls upstream",
    "reload": "errors live logs systemd",
    "service": "admin config dial drain errors gateway generation health listeners live logs pulse reload signin systemd tls viewers watch web",
    "check_providers": "config errors routing upstream",
    "own_requests": "",
    "demo": "config logs own_requests service",
    "log_file": "log_writer",
    "dumpable": "",
    "terminal": "",
    "tap": "check_providers config demo dial dumpable errors heap listeners log_file log_writer logs service signals systemd terminal upstream",
    "init": "config errors",
    "command": "init",
    "__main__": "command",
}
FILES = {path.stem: ast.parse(path.read_text()) for path in PACKAGE.glob("*.py") if path.stem != "__init__"}


def imports(tree: ast.Module) -> set[str]:
    """Everything imported, each as a dotted name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_table_names_every_file_and_has_no_cycle():
    assert set(FILES) == set(MAY_IMPORT)
    order = list(MAY_IMPORT)
    for name, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(name) for other in allowed.split()), name


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_what_the_table_says(name):
    ours = {each.split(".")[1] for each in imports(FILES[name]) if each.startswith("aigw.")} - {"__version__"}
    assert ours == set(MAY_IMPORT[name].split())


@pytest.mark.parametrize("name", PURE)
def test_a_pure_file_imports_neither_twisted_nor_treq(name):
    assert not [each for each in imports(FILES[name]) if each.split(".")[0] in ("twisted", "treq", "zope")]


@pytest.mark.parametrize("name", FILES)
def test_no_file_imports_the_reactor_at_its_top_level(name):
    top = ast.Module([node for node in FILES[name].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert "twisted.internet.reactor" not in imports(top)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.name)
def test_no_file_is_over_300_lines(path):
    assert len(path.read_text().splitlines()) <= 300


def test_a_secret_is_revealed_in_one_place():
    assert [p.name for p in PACKAGE.glob("*.py") if ".reveal()" in p.read_text()] == ["routing.py"]
