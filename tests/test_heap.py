"""The heap keeps what large bodies need: seen in the page faults of a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from aigw.daemon import memory
if sys.argv[1] == "kept":
    memory.keep()
def use():
    large = [bytes(1 << 19) for _ in range(8)]
    for each in large:
        hash(each)  # reads every page
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)


def test_the_pages_of_large_bodies_are_kept():
    if faults("as it is") < 10_000:
        pytest.skip("this C library keeps them by itself")
    assert faults("kept") < 1_000
