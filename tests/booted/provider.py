"""A provider for the booted machine: OpenAI's chat completions, plain and streamed, as long as the request asks for.

A message `{"events": N, "every": SECONDS}` in JSON says how many events a stream has, and their pace.
Run as `python -m tests.booted.provider PORT`.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if not asked.get("stream"):
            body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}}]}).encode()
            self._head("application/json", ("content-length", str(len(body))))
            self.wfile.write(body)
            return
        self._head("text/event-stream", ("transfer-encoding", "chunked"))
        wanted = json.loads(asked["messages"][0]["content"])
        for number in range(wanted["events"]):
            self._event({"content": f"{number} "})
            time.sleep(wanted["every"])
        self._event({}, "stop")
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _head(self, content_type, more):
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header(*more)
        self.end_headers()

    def _event(self, delta, finish_reason=None):
        event = {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, *_):
        pass  # a gateway that is killed lets go of its connections


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
