"""A provider in a thread of its own, for tests that drive other processes: it answers as it is told to, until told else."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.providers import DONE, completion, event


class Switch:
    """``mode``: ok, 500, 429 (with Retry-After ``rests``) or cut (a stream without its end)."""

    def __init__(self) -> None:
        self.mode = "ok"
        self.rests = 30
        self.pause = 0.0
        self.models = ["m"]
        self.lists_to_all = False  # without a key too
        switch = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if "authorization" in self.headers or switch.lists_to_all:
                    self.reply(200, json.dumps({"data": [{"id": name} for name in switch.models]}).encode())
                else:
                    self.reply(401, b'{"error": {"message": "canary-content"}}')

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if switch.mode in ("429", "500"):
                    more = {"Retry-After": str(switch.rests)} if switch.mode == "429" else {}
                    self.reply(int(switch.mode), b'{"error": {"message": "canary-content"}}', **more)
                    return
                time.sleep(switch.pause)  # a provider that thinks
                if not body.get("stream"):
                    self.reply(200, completion())
                    return
                events = [event({"content": "hi"}), event(finish_reason="stop")]
                events += [event(usage={"prompt_tokens": 10, "completion_tokens": 20}), DONE]
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Connection", "close")
                self.end_headers()
                for each in events[: 1 if switch.mode == "cut" else None]:
                    self.wfile.write(each)
                self.close_connection = True

            def reply(self, status, body, **headers):
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(body)),
                    **headers,
                }.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None  # a gateway that hangs up
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()
