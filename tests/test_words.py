"""Plain words: the texts and the names of the program have no verb of speech and none of the phrases of ``PHRASES``."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "aigw"

VERBS = {"say", "says", "said", "tell", "tells", "told", "hear", "hears", "heard"}
OLD_NAMES = {"trail", "watch", "flood", "tally", "pulse", "lifetime", "mortal", "deaf", "judge", "look", "wire"}
PHRASES = (
    r"stands? (twice|in|beside|between|where)|\bstood\b|has been slept|sleeps|\bdoors?\b|\bwants?\b|what they lack|none is told|"
    r"\bwhoever\b|\bnobody\b|\bsomebody\b|\banybody\b|\beverybody\b|who has none|giv(e|es|ing) way|carr(y|ies) nothing|"
    r"in any but|none of ours|in disguise|let go|\bcuts?\b|is looked at|\bspeaks?\b|for nothing|dressed as|goes on|"
    r"is to be told|hardly|\bdie[sd]?\b|learns nothing|makes? way|made up|beats? |is fed|\bgone\b"
)
ALLOWED_NAMES = {"look_up", "_look_up"}  # of host names

FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = sorted([*PACKAGE.rglob("*.html"), *(ROOT / "contrib/systemd").glob("*"), ROOT / "conf/config.yaml"])


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, 0


def texts(path: Path) -> Iterator[tuple[str, int]]:
    """String literals, docstrings and comments, each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.string, token.start[0]


def bad_in(text: str) -> list[str]:
    verbs = "|".join(sorted(VERBS))
    return [found[0] for found in re.finditer(rf"\b({verbs})\b|{PHRASES}", text, re.IGNORECASE)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_texts_are_in_plain_words(path):
    """See VERBS and PHRASES: no metaphor, no pronoun without its noun, no program that speaks."""
    assert [(line, bad) for text, line in texts(path) if (bad := bad_in(text))] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_are_the_fields(path):
    found = [
        (line, name)
        for name, line in identifiers(ast.parse(path.read_text()))
        if (VERBS | OLD_NAMES) & set(name.lower().split("_")) and name not in ALLOWED_NAMES
    ]
    assert found == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_pages_units_and_the_example_are_in_plain_words(path):
    if path.name.startswith("requirements"):
        return
    lines = path.read_text().splitlines()
    assert [
        (number, bad)
        for number, line in enumerate(lines, 1)
        if (bad := bad_in(re.sub(r"\bcut -\w+|\.target\.wants", "", line)))
    ] == []


def test_no_two_classes_have_one_name():
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
