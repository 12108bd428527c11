"""R11: a page in a real Chromium calls the gateway across origins, through TLS (pytest -m browser)."""

from __future__ import annotations

import http.server
import threading

import pytest
import trustme

from tests.switch import Switch
from tests.test_browser import Browser
from tests.test_daemon import Daemon

pytestmark = pytest.mark.browser

KEY = "gateway-key-0987-0987"
CALL = """
const [url, key] = arguments;
const call = async (path, given) => {
  try {
    const answer = await fetch(url + path, given);
    const headers = Object.fromEntries(answer.headers);
    return { status: answer.status, text: await answer.text(), headers };
  } catch (error) {
    return { failed: String(error) };
  }
};
const authorization = `Bearer ${key}`;
const body = (stream) => JSON.stringify({ model: "chat", stream, messages: [{ role: "user", content: "hi" }] });
const post = (stream, more) => ({ method: "POST", body: body(stream), headers: { "content-type": "application/json", authorization, ...more } });
return (async () => ({
  plain: await call("/v1/chat/completions", post(false)),
  streamed: await call("/v1/chat/completions", post(true, { "x-stainless-lang": "js" })),
  models: await call("/v1/models", { headers: { authorization } }),
  keyless: await call("/v1/chat/completions", { method: "POST", body: body(false), headers: { "content-type": "application/json" } }),
  wrong: await call("/v1/no-such-path", { headers: { authorization } }),
  status: await call("/status.json", { headers: { authorization } }),
}))();
"""


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>app</title>")

    def log_message(self, *_):
        pass


@pytest.fixture
def pages():
    """Two web servers: the ports of two origins."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_r11_a_page_calls_across_origins_and_no_other_page_does(tmp_path, pages):
    allowed, other = pages
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Switch() as provider:
        config = f"""
api_key: {KEY}
listen: ["tcp:0:interface=127.0.0.1"]
tls: {{cert_file: cert.pem, key_file: key.pem}}
cors: {{origins: ["{allowed}"]}}
providers: [{{name: p, base_url: "{provider.url}"}}]
routes: [{{name: chat, steps: [{{provider: p, model: m}}]}}]
"""
        with Daemon(tmp_path, config=config) as daemon:
            url = f"https://localhost:{daemon.address()[1]}"
            with Browser.trusting(tmp_path / "cert.pem", url, tmp_path) as browser:
                call = lambda: browser.driver.run(CALL.replace("arguments", f"['{url}', '{KEY}']"))  # noqa: E731
                browser.driver.get(allowed)
                got = call()
                for kind in ("plain", "streamed"):
                    assert got[kind]["status"] == 200, got[kind]
                    assert got[kind]["headers"]["x-aigw-provider"] == "p"
                    assert got[kind]["headers"]["x-request-id"]
                assert "data: [DONE]" in got["streamed"]["text"]
                assert '"chat"' in got["models"]["text"]
                assert (got["keyless"]["status"], got["wrong"]["status"]) == (401, 404)
                assert "failed" in got["status"], "the status page is for no other page"
                browser.driver.get(other)
                assert {name for name, each in call().items() if "failed" not in each} == set()
