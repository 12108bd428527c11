"""Clients for the booted machine: on new connections, on kept ones, and with long streams; a failure is never retried.

Run as `python -m tests.booted.load JSON` with the fields of `Plan`. It says "going" when every client has had an answer
(a stream: its first event), goes on until its standard input ends, lets all end that has begun, and prints a summary.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
import time
from dataclasses import dataclass, field

HOST = "127.0.0.1"
TRUSTING = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
TRUSTING.check_hostname, TRUSTING.verify_mode = False, ssl.CERT_NONE
PATIENCE = 90  # seconds for one answer: longer than a drain


@dataclass
class Plan:
    key: str
    port: int = 443
    fresh: float = 0  # requests a second, each on a connection of its own
    kept: float = 0  # requests a second, on kept connections
    connections: int = 5  # the kept ones
    streams: int = 0  # at any time
    events: int = 0
    every: float = 0.5


@dataclass
class Counters:
    """What became of one kind of requests."""

    ok: int = 0
    failed: list[str] = field(default_factory=list)
    slowest: float = 0  # seconds
    told_to_close: int = 0  # answers with Connection: close
    found_closed: int = 0  # kept connections that were closed between two requests, with nothing sent on them


class Answer:
    """One connection's answers, read by the letter of HTTP/1.1."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.closes = False

    @classmethod
    async def connect(cls, plan):
        return cls(*await asyncio.open_connection(HOST, plan.port, ssl=TRUSTING))

    def send(self, plan, body):
        data = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {plan.key}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)

    async def head(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.lower().split("\r\n")
        assert " 200 " in lines[0], head + str(await self.reader.read(500))
        headers = dict(line.split(": ", 1) for line in lines[1:] if line)
        self.closes = headers.get("connection") == "close"
        return headers

    async def body(self, headers):
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        parts = []
        async for chunk in self.chunks():
            parts.append(chunk)
        return b"".join(parts)

    async def chunks(self):
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    def close(self):
        self.writer.close()


class Load:
    def __init__(self, plan):
        self.plan = plan
        self.over = asyncio.Event()
        self.tallies = {"fresh": Counters(), "kept": Counters(), "streams": Counters()}
        self.going = []

    async def timed(self, tally, work):
        started = time.monotonic()
        try:
            await asyncio.wait_for(work, PATIENCE)
            tally.ok += 1
        except Exception as error:
            tally.failed.append(f"after {time.monotonic() - started:.2f} s: {type(error).__name__}: {error}"[:300])
        tally.slowest = max(tally.slowest, time.monotonic() - started)

    async def pace(self, rate, work):
        """Open loop: one begins every 1/rate seconds, however long they take."""
        running, begins = set(), time.monotonic()
        while not self.over.is_set():
            running.add(asyncio.create_task(work()))
            begins += 1 / rate
            await asyncio.sleep(max(0, begins - time.monotonic()))
            running = {task for task in running if not task.done()}
        await asyncio.gather(*running)

    async def one_on_a_new_connection(self, going):
        async def work():
            connection = await Answer.connect(self.plan)
            connection.send(self.plan, PLAIN)
            assert b'"ok"' in await connection.body(await connection.head())
            connection.close()

        await self.timed(self.tallies["fresh"], work())
        going.set()

    async def on_a_kept_connection(self, going):
        tally, connection = self.tallies["kept"], None

        async def work():
            nonlocal connection
            if connection and connection.reader.at_eof():  # as every client looks before it sends
                tally.found_closed += 1
                connection.close()
                connection = None
            connection = connection or await Answer.connect(self.plan)
            connection.send(self.plan, PLAIN)
            assert b'"ok"' in await connection.body(await connection.head())
            if connection.closes:
                tally.told_to_close += 1
                connection.close()
                connection = None

        begins = time.monotonic()
        while not self.over.is_set():
            failures = len(tally.failed)
            await self.timed(tally, work())
            if len(tally.failed) > failures:
                connection = None
            going.set()
            begins += self.plan.connections / self.plan.kept
            await asyncio.sleep(max(0, begins - time.monotonic()))
        if connection:
            connection.close()

    async def one_stream_after_the_other(self, going):
        async def work():
            plan = self.plan
            connection = await Answer.connect(plan)
            asked = json.dumps({"events": plan.events, "every": plan.every})
            connection.send(plan, {"model": "r", "stream": True, "messages": [{"role": "user", "content": asked}]})
            await connection.head()
            got = b""
            async for chunk in connection.chunks():
                got += chunk
                going.set()
            events = [line for line in got.decode().split("\n\n") if line]
            assert events[-1] == "data: [DONE]", events[-1]
            words = [json.loads(each[6:])["choices"][0]["delta"].get("content", "") for each in events[:-1]]
            assert "".join(words) == "".join(f"{number} " for number in range(plan.events)), words
            connection.close()

        while not self.over.is_set():
            await self.timed(self.tallies["streams"], work())
            going.set()

    def will_be_going(self):
        self.going.append(asyncio.Event())
        return self.going[-1]

    async def run(self):
        plan = self.plan
        work = [self.one_stream_after_the_other(self.will_be_going()) for _ in range(plan.streams)]
        work += [self.on_a_kept_connection(self.will_be_going()) for _ in range(plan.connections if plan.kept else 0)]
        if plan.fresh:
            going = self.will_be_going()
            work.append(self.pace(plan.fresh, lambda: self.one_on_a_new_connection(going)))
        started = time.monotonic()
        running = asyncio.gather(*work)
        await asyncio.gather(*(each.wait() for each in self.going))
        print("going", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        self.over.set()
        seconds = time.monotonic() - started
        await running
        asked = sum(tally.ok + len(tally.failed) for tally in (self.tallies["fresh"], self.tallies["kept"]))
        summary = {name: vars(tally) for name, tally in self.tallies.items()}
        print(json.dumps({**summary, "rate": asked / seconds}), flush=True)


PLAIN = {"model": "r", "messages": [{"role": "user", "content": "hi"}]}

if __name__ == "__main__":
    asyncio.run(Load(Plan(**json.loads(sys.argv[1]))).run())
