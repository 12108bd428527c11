"""wrk (Debian's package) for requests with a plain answer."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SCRIPT = Path(__file__).with_name("post.lua")


class Counted(NamedTuple):
    """What wrk says."""

    requests: int
    bytes: int
    seconds: float
    errors: int
    p50_ms: float
    p99_ms: float


def run(
    url: str, body: bytes, key: str, connections: int, seconds: float, headers: Sequence[str] = (), threads: int = 1
) -> Counted:
    """One request again and again on so many connections. wrk knows whole seconds only: at least one."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = ["wrk", "-t", threads, "-c", connections, "-d", f"{max(1, round(seconds))}s", "--timeout", "30s"]
        script = ["-s", SCRIPT, url, "--", "POST" if body else "GET", key, file.name, *headers]
        done = subprocess.run([str(word) for word in command + script], capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(output: str) -> Counted:
    """The last line is post.lua's."""
    return Counted(**json.loads(output.strip().splitlines()[-1]))
