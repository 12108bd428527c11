"""How far one streamed request goes through the house: the functions of ours that are called, and the moves from one file to another.

The table in docs/architecture.md is the budget. ``AIGW_WRITE_DOCS=1`` writes what is counted into it, and only when that is less.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import test_cost
from tests.harness import HELLO, request
from tests.providers import LAST_CHUNK, STREAM_HEAD, chunk, event
from tests.test_cost import CHUNK

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
ROW = "| {} | {} | {} |"
PARTS = (
    "the request, from the client's bytes to the provider",
    "the first bytes of the answer, up to the commit point",
    "a further chunk",
    "the end of the stream",
)
END = chunk(event({}, "stop")) + chunk(b"data: [DONE]\n\n") + LAST_CHUNK
gateway, is_straight = test_cost.gateway, test_cost.is_straight


def called(run: Callable[[], object]) -> list[str]:
    """The file of each function of ours that ``run`` calls, and the function, in their order."""
    found: list[str] = []
    ours = f"{ROOT / 'aigw'}{os.sep}"

    def note(frame, kind, _of):
        code = frame.f_code
        if kind == "call" and code.co_filename.startswith(ours):
            found.append(f"{code.co_filename.removeprefix(ours)}:{code.co_name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return found


def moves(found: list[str]) -> int:
    files = [each.partition(":")[0] for each in found]
    return sum(one != other for one, other in itertools.pairwise(files))


@pytest.fixture
def counted(gateway):
    """What each part calls, of the third request on a connection: whatever is made once is made."""
    client = gateway.open()
    sent = request({**HELLO, "stream": True})
    for _ in range(3):
        out = called(lambda: client.say(sent))
        provider = gateway.doors["p1"].wire
        provider.take()
        steps = [called(lambda data=data: provider.say(data)) for data in (STREAM_HEAD + CHUNK, CHUNK, END)]  # noqa: B023
        assert client.take().count(b"a few words") == 2
    assert [record.outcome for record in gateway.records] in ([], ["ok"] * 3)
    return dict(zip(PARTS, [out, *steps], strict=True))


def budget_of(part: str) -> tuple[int, int]:
    found = re.search(re.escape(ROW.format(part, "N", "N")).replace("N", r"(\d+)"), PAGE.read_text())
    assert found, f"docs/architecture.md has no row for {part!r}"
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("part", PARTS)
def test_a_streamed_request_goes_no_farther_than_the_page_says(part, counted, capsys):
    now = len(counted[part]), moves(counted[part])
    budget = budget_of(part)
    with capsys.disabled():
        print(f" [{part}: {now[0]} calls, {now[1]} moves]", end="")
    if os.environ.get("AIGW_SHOW_CALLS"):
        with capsys.disabled():
            print("", *counted[part], sep="\n  ")
    if os.environ.get("AIGW_WRITE_DOCS"):
        less = (min(now[0], budget[0]), min(now[1], budget[1]))
        PAGE.write_text(PAGE.read_text().replace(ROW.format(part, *budget), ROW.format(part, *less)))
    assert now[0] <= budget[0], "more functions are called"
    assert now[1] <= budget[1], "it goes through more files"
