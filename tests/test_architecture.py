"""The house: which file may import which. Nothing imports upward, and pure files import neither twisted nor treq.

Beyond the table of the design: `schema`, `notation`, `consistency`, `document`, `permissions` and `secret` are what `config` was too large to hold, `skip`, `walk`, `envelope` and
`sse` the same for `openai`, `connection` and `framing` for `agent`, `client` for `upstream`, `answers` for `relay`, `channel`, `heads`, `grammar`, `request` and `admission` for `web`, whose long work is cut by `slices`; `openfiles` is what
the kernel has to say on how many connections there may be, `heap` what the C library has to hear on memory; `headers`
is the one place that says which headers cross the gateway; `demo` is the demo. What shows the gateway is made of the records in `tally` and `history` and of the
moment in `live`; `metrics`, `status` and `tracing` put it in words, `watch` owns it, `admin` has the resources and `gates` who may look.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aigw"
PURE = "errors secret document permissions notation schema consistency config systemd skip walk envelope sse openai headers auth health routing records flood grammar heap usage history tally live metrics signin status pages trace spans".split()
MAY_IMPORT = {
    "errors": "",
    "secret": "",
    "systemd": "",
    "records": "",
    "headers": "",
    "sse": "",
    "skip": "",
    "walk": "skip",
    "envelope": "skip walk",
    "slices": "",
    "flood": "",
    "drain": "",
    "signals": "",
    "dial": "",
    "wire": "",
    "heads": "",
    "heap": "",
    "document": "",
    "permissions": "",
    "consistency": "",
    "usage": "",
    "history": "",
    "logs": "flood systemd",
    "pulse": "logs",
    "notation": "secret",
    "schema": "notation secret",
    "config": "consistency document errors notation permissions schema secret",
    "openai": "envelope errors skip sse walk",
    "auth": "config errors",
    "health": "config",
    "routing": "config envelope errors health openai records secret",
    "framing": "",
    "connection": "errors framing wire",
    "tls": "config errors",
    "agent": "connection errors tls",
    "openfiles": "",
    "admission": "errors logs openai openfiles",
    "listeners": "admission config errors tls",
    "client": "agent connection",
    "upstream": "agent client config connection envelope errors headers openai routing tls",
    "relay": "errors openai usage",
    "answers": "connection errors openai relay sse usage",
    "gateway": "answers config connection errors headers health openai records relay routing upstream",
    "request": "config errors headers openai",
    "grammar": "",
    "lifetime": "errors request",
    "channel": "errors grammar headers heads lifetime openai request wire",
    "web": "admission auth channel config errors gateway headers openai records request slices",
    "trace": "records",
    "spans": "records trace usage",
    "otlp": "spans trace",
    "tracing": "logs otlp records spans trace",
    "tally": "config history records usage",
    "live": "config",
    "metrics": "live tally",
    "status": "config history live tally",
    "viewers": "errors",
    "watch": "config live logs metrics records routing secret status tally trace tracing viewers",
    "pages": "headers",
    "signin": "config",
    "gates": "auth config errors request signin",
    "admin": "auth config errors gates headers pages request signin watch web",
    "generation": "config errors listeners tls upstream",
    "reload": "errors live logs systemd",
    "service": (
        "admin config dial drain errors gateway generation health listeners live logs pulse reload systemd tls watch web"
    ),
    "check_providers": "config errors routing upstream",
    "demo": "config logs service",
    "tap": "check_providers config demo dial errors heap listeners logs service signals systemd upstream",
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
