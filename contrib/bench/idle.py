#!/usr/bin/env python3
"""What an idle stream costs in memory: KiB per stream of a gateway that really runs.

    twistd -n aigw -c bench.yaml & contrib/bench/idle.py --pid $! --port 8080 --key KEY --model NAME

It plays the provider itself, on --provider-port: the route NAME has to lead to http://127.0.0.1:9902/v1. Each stream is
asked for, given its first output, and left alone. A stream is two connections: raise the limit of open files of both
processes (ulimit -n).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import ssl
from pathlib import Path

EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "hello"}, "finish_reason": null}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def rss(pid: int) -> int:
    """Resident memory in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) if found else 0


async def provide(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One stream that says hello and no more."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(HEAD + b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
    with contextlib.suppress(asyncio.CancelledError):  # which is how asyncio ends
        await asyncio.sleep(3600)


async def main(a: argparse.Namespace) -> None:
    """Open the streams, a few at a time, and compare."""
    server = await asyncio.start_server(provide, "127.0.0.1", a.provider_port, backlog=1000)
    context = ssl.create_default_context() if a.tls else None
    if context:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    body = json.dumps({"model": a.model, "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
    asked = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {a.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    held = []

    async def ask() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", a.port, ssl=context)
        writer.write(asked)
        await reader.readuntil(b"hello")
        held.append(writer)

    for _ in range(20):  # whatever is made once is made
        await ask()
    await asyncio.sleep(1)
    before = rss(a.pid)
    while len(held) < a.streams + 20:
        await asyncio.gather(*(ask() for _ in range(min(50, a.streams + 20 - len(held)))))
    await asyncio.sleep(2)
    after = rss(a.pid)
    print(f"{a.streams} streams: {before / 1024:.1f} MiB before, {after / 1024:.1f} MiB with them,", end=" ")
    print(f"{(after - before) / a.streams:.1f} KiB each")
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--provider-port", type=int, default=9902)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tls", action="store_true")
    asyncio.run(main(parser.parse_args()))
