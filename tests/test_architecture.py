"""The house: one rule for the imports, pure rooms, small files. docs/architecture.md is the tour."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

RULE = "errors secret  <  settings log_output  <  config  <  protocols  <  net telemetry  <  upstream access accounting credentials connections  <  routing store  <  proxy  <  straight  <  server explain  <  admin  <  daemon  <  commands  <  tap"
BESIDE = {
    "key_forms": "secret",
    "string_search": "secret",
    "pieces": "secret",
    "command": "tap",
    "__main__": "tap",
}  # files that stand where another does
PURE = ("settings", "config", "protocols")
PURE_FILES = "accounting/line accounting/report routing/balance routing/cooldown routing/router access/keys access/errors access/limits access/ledger access/shown access/estimates telemetry/record telemetry/counters telemetry/last_hour telemetry/prometheus telemetry/status net/headers net/addresses upstream/hostname routing/route_names routing/nearest".split()

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aigw"
PATHS = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


class Trees(Mapping[str, ast.Module]):
    """The files, each parsed when a test asks for it: each process of a run imports this module."""

    def __getitem__(self, name: str) -> ast.Module:
        return parsed(PATHS[name])

    def __iter__(self) -> Iterator[str]:
        return iter(PATHS)

    def __len__(self) -> int:
        return len(PATHS)


FILES = Trees()
PLACES = {room: place for place, rooms in enumerate(RULE.split("<")) for room in rooms.split()}
PLACES |= {name: PLACES[other] for name, other in BESIDE.items()}


def imports(tree: ast.Module) -> set[str]:
    """Everything imported, each as a dotted name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    return name.split("/")[0]


@pytest.mark.parametrize("name", [name for name in FILES if name != "__init__"])
def test_a_room_imports_only_from_rooms_on_its_left(name):
    mine = room(name)
    for each in imports(FILES[name]):
        first, _, rest = each.partition(".")
        other = rest.split(".")[0]
        if first == "aigw" and other not in (mine, "__version__"):
            beside = mine in BESIDE or other in BESIDE
            assert PLACES[other] < PLACES[mine] or (beside and PLACES[other] == PLACES[mine]), each


@pytest.mark.parametrize("name", [name for name in FILES if room(name) in PURE or name in PURE_FILES])
def test_a_pure_file_imports_neither_twisted_nor_treq(name):
    assert not [each for each in imports(FILES[name]) if each.split(".")[0] in ("twisted", "treq", "zope")]


def test_the_pure_files_exist():
    assert set(PURE_FILES) <= set(FILES)


def top_level_imports(tree: ast.Module) -> set[str]:
    return imports(ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], []))


def test_no_file_imports_the_reactor_at_its_top_level():
    assert [name for name in FILES if "twisted.internet.reactor" in top_level_imports(FILES[name])] == []


# Private names of other packages, by file, each with its reason.
PRIVATE_OF_OTHERS = {
    "settings/addresses": {"_replace"},  # of a named tuple, where it is documented
    # of Twisted, whose reactors have no public place for another loop or another dispatch of events
    "net/reactor": {
        "_disconnectSelectable",
        "_doReadOrWrite",
        "_justStopped",
        "_newTimedCalls",
        "_pendingTimedCalls",
        "_poller",
        "_selectables",
        "_started",
    },
    "net/write": {"_tempDataBuffer"},  # of Twisted; the file says why
}


@cache
def defined(name: str) -> set[str]:
    """The names that a file defines: functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(FILES[name]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return names


def private_names(tree: ast.Module) -> set[str]:
    """The private names that a file uses as attributes, imports, or asks for by ``getattr``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
            names |= {
                each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)
            }
    return {name for name in names if re.fullmatch(r"_(?!_)\w+", name)}


def private_of_others(name: str) -> set[str]:
    """Those that neither the file defines nor a file of its own room that it imports."""
    known = set(defined(name))
    for each in imports(FILES[name]):
        file = each.removeprefix("aigw.").rpartition(".")[0].replace(".", "/")
        if file in FILES and room(file) == room(name):
            known |= defined(file)
    return private_names(FILES[name]) - known


def test_no_file_uses_a_private_name_of_another_package():
    assert {name: found for name in FILES if (found := private_of_others(name))} == PRIVATE_OF_OTHERS


def test_no_file_is_over_300_lines():
    assert [name for name, path in PATHS.items() if len(path.read_text().splitlines()) > 300] == []


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_room_says_what_it_is_for_and_names_its_files(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert len(docstring.splitlines()) <= 6
    files = [each.stem for each in path.parent.glob("*.py") if each.stem != "__init__"]
    assert [each for each in files if each not in re.findall(r"\w+", docstring)] == []


PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROOMS = dict(re.findall(r"^\| `(\w+)` \| .+ \| (`.+) \|$", PAGE.partition("**The rule of imports.**")[0], re.MULTILINE))


def test_the_page_lists_each_room_with_its_files():
    rooms = {path.parent.name: path.parent for path in PACKAGE.glob("*/__init__.py")}
    files = {name: sorted({each.stem for each in folder.glob("*.py")} - {"__init__"}) for name, folder in rooms.items()}
    assert {name: sorted(re.findall(r"`(\w+)`", row.partition(", and ")[0])) for name, row in ROOMS.items()} == files


def test_each_place_that_the_page_names_is_there():
    named = re.findall(rf"`((?:{'|'.join(ROOMS)})/\w+)`", PAGE)
    assert len(named) > 80
    assert [name for name in named if name not in FILES] == []


def test_a_secret_is_revealed_only_where_it_is_sent_to_a_provider_a_proxy_or_the_store():
    revealing = [name for name, path in PATHS.items() if ".reveal()" in path.read_text()]
    assert revealing == ["routing/router", "store/store_link", "upstream/proxies"]
