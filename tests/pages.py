"""Tables of the documents that are written by their tests."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

FAULTS = Path(__file__).parent.parent / "docs" / "faults.md"
WORDS = {
    "-": "cannot happen",
    "whole": "the answer, byte for byte",
    "reported": "the provider's error, byte for byte",
}


def in_words(fate: str, broken: str) -> str:
    """What becomes of a request, as the page of faults has it; ``broken`` is what a broken answer is called."""
    return WORDS.get(fate) or ("the next step's answer" if fate.startswith("next") else broken)


def rows(lines: Iterable[str]) -> str:
    """The lines as they stand between the marks."""
    return "\n".join([*lines, ""])


def check_table(name: str, expected: str, page: Path = FAULTS) -> None:
    """The page has ``expected`` between the marks of that name. AIGW_WRITE_DOCS=1 writes it."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, _, rest = page.read_text().partition(begin)
    shown, _, after = rest.partition(end)
    if os.environ.get("AIGW_WRITE_DOCS"):
        shown = expected
        page.write_text(f"{before}{begin}{shown}{end}{after}")
    assert shown == expected, "write it by AIGW_WRITE_DOCS=1"
