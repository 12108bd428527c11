"""The status page in a real Chromium, through TLS (pytest -m browser; Debian: chromium and chromium-driver).

With AIGW_SCREENSHOTS=FOLDER it leaves pictures of the page there; demo.png is that of docs/status-page.png, which was
taken of a demo that ran for a while.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import re
import signal
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from aigw.commands.demo import KEY as DEMO_KEY
from tests.switch import Switch
from tests.test_daemon import Daemon, Demo
from tests.webdriver import Chromium

pytestmark = pytest.mark.browser

KEY = "gateway-key-0987-0987"
CANARIES = (KEY, "canary-key-4711", "canary-content")


@pytest.fixture
def stage(tmp_path):
    """A daemon over TLS before two providers, and the means to ask it."""
    ca = trustme.CA()
    leaf = ca.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    leaf.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Switch() as first, Switch() as second:
        config = f"""
api_key: {KEY}
listen: ["tcp:0:interface=127.0.0.1"]
tls: {{cert_file: cert.pem, key_file: key.pem}}
cooldown: 4s
providers:
  - {{name: cerebras, base_url: "{first.url}", api_key: canary-key-4711}}
  - {{name: openrouter, base_url: "{second.url}", api_key: canary-key-4712}}
routes:
  - name: dynamic/n8n
    steps: [{{provider: cerebras, model: gpt-oss-120b}}, {{provider: openrouter, model: "nvidia/nemotron-3-nano-30b-a3b:free"}}]
  - name: fast
    steps: [{{provider: openrouter, model: qwen3-32b}}]
"""
        with Daemon(tmp_path, config=config) as daemon:
            yield Stage(f"https://localhost:{daemon.address()[1]}", tmp_path, first, second, daemon)


class Stage:
    def __init__(self, url, folder, first, second, daemon):
        self.url, self.folder, self.first, self.second, self.daemon = url, folder, first, second, daemon
        self.tls = ssl.create_default_context(cafile=str(folder / "ca.pem"))

    def ask(self, model="dynamic/n8n", stream=False, key=KEY):
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "canary-content"}]}
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", json.dumps(body).encode(), {"Authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.tls) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            error.close()
        except http.client.IncompleteRead:
            pass  # the stream was cut

    def browser(self, width=1280, height=900, dark=False):
        return Browser.trusting(self.folder / "cert.pem", self.url, self.folder, width, height, dark)


class Browser:
    @classmethod
    def trusting(cls, certificate, url, folder, width=1280, height=900, dark=False):
        """A Chromium that trusts this one certificate, by its public key."""
        shown = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        spki = hashlib.sha256(shown.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        driver = Chromium(
            f"--user-data-dir={folder}/profile-{time.monotonic()}",
            f"--ignore-certificate-errors-spki-list={base64.b64encode(spki).decode()}",
            f"--window-size={width},{height}",
        )
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.devtools("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        driver.devtools("Emulation.setEmulatedMedia", features=scheme)
        return cls(driver, url)

    def __init__(self, driver, url):
        self.driver, self.url = driver, url

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()

    def sign_in(self, key=KEY):
        self.driver.get(f"{self.url}/status")
        assert self.run("return document.activeElement.id") == "key"
        self.driver.keys(key + "\ue007")  # by keyboard alone
        self.until(lambda: self.run("return document.readyState") == "complete")

    def run(self, script):
        return self.driver.run(script)

    def text(self):
        return self.run("return document.body.innerText")

    def states(self):
        return self.run("return [...document.querySelectorAll('li .badge')].map((each) => each.textContent)")

    def until(self, condition, seconds=2.0):
        """Seconds that it took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if condition():
                return time.monotonic() - started
            time.sleep(0.05)  # a poll of another process, within a bound
        raise AssertionError(self.text())

    def picture(self, name, height=None):
        if folder := os.environ.get("AIGW_SCREENSHOTS"):
            height = height or self.run("return document.documentElement.scrollHeight")
            clip = {"x": 0, "y": 0, "width": self.run("return innerWidth"), "height": height, "scale": 1}
            shot = self.driver.devtools("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
            Path(folder, f"{name}.png").write_bytes(base64.b64decode(shot["data"]))


def some_traffic(stage):
    for _ in range(6):
        stage.ask(stream=True)
        stage.ask("fast")
    stage.first.mode, stage.first.rests = "429", 300
    stage.ask(stream=True)
    stage.second.mode = "cut"
    stage.ask(stream=True)
    stage.second.mode = "500"
    stage.ask("fast")
    stage.second.mode = "ok"


def test_a_provider_goes_down_and_comes_back_before_the_eyes(stage):
    """It rests within 2 s, without a reload of the page; and it answers again."""
    with stage.browser() as browser:
        browser.sign_in("wrong")
        assert "The API key is wrong." in browser.text()
        browser.sign_in()
        browser.until(lambda: browser.states() == ["not used yet"] * 3)
        browser.run("window.same = true")
        stage.ask(stream=True)
        browser.until(lambda: browser.states()[0] == "answering")
        stage.first.mode = "500"
        for _ in range(3):
            stage.ask()
        browser.until(lambda: browser.states()[0] == "resting")
        assert "answered 500" in browser.text()
        assert "resting" in browser.run("return document.getElementById('news').textContent")
        stage.first.mode = "ok"
        browser.until(lambda: browser.states()[0] != "resting", 6.0)  # its cooldown
        stage.ask()
        browser.until(lambda: browser.states()[0] == "answering")
        assert browser.run("return window.same")
        assert not [each for each in browser.driver.console() if each["level"] in ("SEVERE", "WARNING")]


def test_it_is_usable_by_keyboard_and_screen_reader(stage):
    some_traffic(stage)
    with stage.browser() as browser:
        browser.sign_in()
        browser.until(lambda: "resting" in browser.states())
        reached = set()
        for _ in range(4):
            browser.driver.keys("\ue004")  # Tab
            reached.add(browser.run("return document.activeElement.id || document.activeElement.tagName"))
        assert {"failures", "BUTTON"} <= reached
        browser.driver.devtools("Accessibility.enable")
        nodes = browser.driver.devtools("Accessibility.getFullAXTree")["nodes"]
        seen = {
            (node["role"]["value"], (node.get("name") or {}).get("value", "")) for node in nodes if not node["ignored"]
        }
        roles = {role for role, _ in seen}
        assert {"banner", "main", "heading", "list", "listitem", "table", "status", "log", "contentinfo"} <= roles
        assert any(role in ("image", "img") and "first token over the last hour" in name for role, name in seen)
        assert {("heading", "dynamic/n8n"), ("heading", "Recent failures"), ("button", "Sign out")} <= seen


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    [("light", 1280, False), ("dark", 1280, True), ("phone", 375, False), ("phone-dark", 375, True)],
)
def test_nothing_is_cut_off_and_everything_can_be_read(stage, name, width, dark):
    """No sideways scrolling, and a contrast of 4.5 (WCAG 2.2, 1.4.3) between each text and what is behind it."""
    some_traffic(stage)
    with stage.browser(width, dark=dark) as browser:
        browser.driver.get(f"{stage.url}/status")
        browser.picture(f"{name}-login")
        assert browser.run(CONTRAST) == []
        browser.sign_in()
        browser.until(lambda: "resting" in browser.states())
        browser.run(AN_HOUR)
        browser.picture(name)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.run(CONTRAST) == []


def test_the_demo_has_a_page_that_shows_both_steps(tmp_path):
    with Demo(tmp_path, "--demo", config=None) as daemon:
        printed = daemon.printed()
        certificate = Path(re.search(r"--cacert (\S+)", printed)[1])
        url = re.search(r"https://[^/]+", printed)[0]
        tls = ssl.create_default_context(cafile=certificate)
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}).encode()
        request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Authorization": f"Bearer {DEMO_KEY}"})
        for _ in range(5):
            urllib.request.urlopen(request, timeout=10, context=tls).close()
        with Browser.trusting(certificate, url, tmp_path, 1000, 660) as browser:
            browser.sign_in(DEMO_KEY)
            browser.until(lambda: browser.states() == ["failed last time", "answering"])
            browser.picture("demo", 660)


def test_a_gateway_that_goes_away_is_told_and_found_again(stage):
    with stage.browser() as browser:
        browser.sign_in()
        browser.until(lambda: browser.states())
        dims = "return Number(getComputedStyle(document.querySelector('main')).opacity) < 0.9"
        assert not browser.run(dims)
        stage.daemon.stop()
        browser.until(lambda: "connection lost" in browser.text())
        assert browser.run(dims)
        browser.picture("gone")


def test_who_answers_and_why_a_reload_was_refused_can_be_read(stage):
    stage.first.mode = "500"
    with stage.browser() as browser:
        browser.sign_in()
        for _ in range(3):
            stage.ask()
        browser.until(lambda: re.search(r"\b0 % answered by the first step", browser.text()))
        path = stage.folder / "config.yaml"
        path.write_text(path.read_text().replace("cooldown: 4s", "cooldown: 4s\nnonsense: 1"))
        stage.daemon.process.send_signal(signal.SIGHUP)
        browser.until(lambda: "nonsense" in browser.run("return document.getElementById('mistakes').innerText"))
        browser.picture("refused")


def test_h5_what_is_held_and_kept_alive_can_be_read(stage):
    with stage.browser() as browser:
        browser.sign_in()
        assert "held until whole" not in browser.text()
        path = stage.folder / "config.yaml"
        text = path.read_text().replace("- name: fast", "- name: fast\n    hold: whole\n    keepalive: 15s")
        path.write_text(text)
        stage.daemon.process.send_signal(signal.SIGHUP)
        browser.until(lambda: "held until whole · 0 keep-alives, every 15 s" in browser.text(), 5)
        assert re.search(r"Held\s+0 KiB\s+of at most 64.0 MiB", browser.text())
        browser.picture("held")


def test_e9_what_each_key_used_and_has_left_can_be_read(stage):
    path = stage.folder / "config.yaml"
    caller = f'{{name: alice, key_sha256: "{hashlib.sha256(b"canary-key-of-alice").hexdigest()}", group: team-a, requests: 2/h}}'
    group = "{name: team-a, budget: [{tokens: 1M, per: month}]}"
    path.write_text(f"{path.read_text()}keys: [{caller}]\ngroups: [{group}]\n")
    stage.daemon.process.send_signal(signal.SIGHUP)
    shown = "return [...document.querySelectorAll('#callers tr')].map((row) => [...row.children].map((each) => each.textContent))"
    for width in (1280, 375):
        with stage.browser(width) as browser:
            browser.sign_in()
            browser.until(lambda: len(browser.run(shown)) == 3, 6.0)
            if width == 1280:
                for _ in range(3):
                    stage.ask("fast", key="canary-key-of-alice")
            browser.until(lambda: any(row[:3] == ["alice", "3", "1"] for row in browser.run(shown)))
            head, *rows = browser.run(shown)
            assert head == ["Key", "Requests", "Refused", "Tokens in", "from a cache", "out", "Cost", "Left"]
            left = {row[0]: row[-1] for row in rows}
            assert left["default"] == "no limit"
            assert re.fullmatch(
                r"0 of 2 requests in 1 h 0 min; team-a: (1\.0 M|\S+ k) of 1\.0 M tokens this month", left["alice"]
            )
            assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
            assert browser.run(CONTRAST) == []
            browser.picture(f"keys-{width}")
            assert "canary-key" not in browser.run("return document.documentElement.outerHTML")


def test_b9_no_key_and_no_content_is_in_the_page(stage):
    some_traffic(stage)
    with stage.browser() as browser:
        browser.sign_in()
        browser.until(lambda: "resting" in browser.states())
        html = browser.run("return document.documentElement.outerHTML")
        assert not [each for each in CANARIES if each in html]
        assert browser.run("return document.cookie") == ""


# As if it had run for an hour, for the picture.
AN_HOUR = """
let seed = 7;
const random = () => (seed = seed * 16807 % 2147483647) / 2147483647;
for (const route of data.routes) for (const step of route.steps) {
  step.hour.minutes = step.hour.minutes.map((_, i) => i % 17 === 5 ? null : Math.round(180 + 120 * random() + (i > 40 && i < 48 ? 500 : 0)));
  Object.assign(step.hour, { ok: 1240, failed: 13, ms: 243, prompt: 182345, completion: 3456789 });
}
show();
"""
CONTRAST = """
const channel = (c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
const behind = (node) => { for (; node; node = node.parentElement) {
  const color = rgb(getComputedStyle(node).backgroundColor); if (color.length < 4 || color[3] > 0) return color; }
  return [255, 255, 255]; };
const poor = [];
for (const node of document.querySelectorAll("body *")) {
  if (!node.matches("script,noscript,.unseen *,.unseen") && [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) {
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) poor.push([node.textContent.slice(0, 40), ((a + .05) / (b + .05)).toFixed(2)]);
  }
}
return poor;
"""
