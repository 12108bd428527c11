"""The house: one rule for the imports, pure rooms, small files. docs/architecture.md is the tour."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

RULE = "errors secret  <  config  <  protocols  <  net telemetry  <  upstream access  <  proxy  <  server  <  admin  <  daemon  <  tap"
BESIDE = {
    "key_forms": "secret",
    "string_search": "secret",
    "command": "tap",
    "__main__": "tap",
}  # files that stand where another does
PURE = ("config", "protocols")
PURE_FILES = "proxy/cooldown proxy/router access/keys telemetry/record telemetry/counters telemetry/last_hour telemetry/prometheus telemetry/status net/headers net/addresses upstream/hostname".split()

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aigw"
PATHS = {str(path.relative_to(PACKAGE).with_suffix("")): path for path in sorted(PACKAGE.rglob("*.py"))}
FILES = {name: ast.parse(path.read_text()) for name, path in PATHS.items()}
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


@pytest.mark.parametrize("name", FILES)
def test_no_file_imports_the_reactor_at_its_top_level(name):
    top = ast.Module([node for node in FILES[name].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert "twisted.internet.reactor" not in imports(top)


# Private names of other packages, by file, each with its reason.
PRIVATE_OF_OTHERS = {
    "config/addresses": {"_replace"},  # of a named tuple, where it is documented
    "net/write": {"_tempDataBuffer"},  # of Twisted; the file says why
}


def defined(tree: ast.Module) -> set[str]:
    """The names that a file defines: functions, classes, variables and attributes."""
    names = {
        each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    names |= {
        each.attr for each in ast.walk(tree) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store)
    }
    return names | {
        each.id for each in ast.walk(tree) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
    }


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


@pytest.mark.parametrize("name", FILES)
def test_no_file_uses_a_private_name_of_another_package(name):
    """What a file does not define itself may come only from a file of its own room that it imports."""
    known = defined(FILES[name])
    for each in imports(FILES[name]):
        file = each.removeprefix("aigw.").rpartition(".")[0].replace(".", "/")
        if file in FILES and room(file) == room(name):
            known |= defined(FILES[file])
    assert private_names(FILES[name]) - known == PRIVATE_OF_OTHERS.get(name, set())


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_over_300_lines(name):
    assert len(PATHS[name].read_text().splitlines()) <= 300


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_a_room_says_what_it_is_for_and_names_its_files(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert len(docstring.splitlines()) <= 6
    files = [each.stem for each in path.parent.glob("*.py") if each.stem != "__init__"]
    assert [each for each in files if each not in re.findall(r"\w+", docstring)] == []


def test_a_secret_is_revealed_in_one_place():
    assert [name for name, path in PATHS.items() if ".reveal()" in path.read_text()] == ["proxy/router"]
