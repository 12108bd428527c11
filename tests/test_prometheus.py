"""A real Prometheus reads what the gateway says (pytest -m prometheus; Debian: prometheus), and finds what a script caused.

Half an hour of service, compressed: fallbacks, a rest, a 429 with Retry-After, cut streams. Then the queries of docs/observability.md are asked.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.switch import Switch
from tests.test_daemon import Daemon

ROOT = Path(__file__).parent.parent
CONTRIB = ROOT / "contrib" / "prometheus"
DASHBOARD = json.loads((CONTRIB / "grafana-dashboard.json").read_text())
PAGE = (ROOT / "docs" / "observability.md").read_text()
KEY = "gateway-key-0987-0987"
LEAVES = "gateway-key-1234-1234"  # of a caller whose key ends tomorrow, and whose budget its first request uses up
PROVIDERS = ("cerebras", "openrouter")
needs_prometheus = pytest.mark.prometheus

QUERIES = {  # in a table of Markdown a | is written \\|
    name: query.replace("\\|", "|")
    for name, query in re.findall(r"^\| ([^|]+?) \| `([^`]*aigw_[^`]*)` \|$", PAGE, re.MULTILINE)
}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def get(url, **params):
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(params)}" if params else url, timeout=10) as answer:
        return answer.read()


def wait(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except OSError:
            pass
        time.sleep(0.1)  # a poll of another process, within a bound
    raise AssertionError("not in time")


def promtool(*arguments, text=None, folder=CONTRIB):
    done = subprocess.run(["promtool", *arguments], input=text, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def prometheus(folder, target, config=None):
    """A Prometheus that scrapes ``target`` once a second, or has another ``config``; gives its address."""
    url = f"127.0.0.1:{free_port()}"
    (folder / "prometheus.yml").write_text(
        config
        or "global: {scrape_interval: 1s}\n"
        f"scrape_configs: [{{job_name: aigw, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    command = ["prometheus", f"--web.listen-address={url}", "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        wait(lambda: get(f"http://{url}/-/ready"))
        yield f"http://{url}/api/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


class Asking:
    """Queries as of the latest scrape, so that nothing is extrapolated."""

    def __init__(self, api):
        self.api = api

    def ask(self, query, at=None):
        said = json.loads(get(f"{self.api}/query", query=query, **({"time": at} if at else {})))
        return said["data"]["result"]

    def latest(self):
        return float(self.ask('timestamp(up{job="aigw"})')[0]["value"][1])

    def scraped(self):
        """Two more scrapes, so that all that was there before is in."""
        before = self.latest()
        wait(lambda: self.latest() >= before + 2)
        return self.latest()

    def table(self, query, at):
        """From the values of the labels to the number."""
        return {
            tuple(value for name, value in sorted(each["metric"].items()) if name != "__name__"): float(
                each["value"][1]
            )
            for each in self.ask(query, at)
        }


class Stage:
    def __init__(self, folder, first, second):
        self.folder, self.first, self.second = folder, first, second
        self.admin = free_port()
        (folder / "prices.yaml").write_text(
            "".join(f'{name}: {{"*": {{input: 1, output: 10000}}}}\n' for name in PROVIDERS)
        )
        tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86400))
        self.config = f"""
api_key: {KEY}
keys:
  - {{name: leaves, key: {LEAVES}, expires: {tomorrow}, budget: [{{usd: 0.041, per: month}}], assume: 4}}
prices: prices.yaml
listen: ["tcp:0:interface=127.0.0.1"]
admin: {self.admin}
cooldown: 3s
providers:
  - {{name: cerebras, base_url: "{first.url}", api_key: canary-key-4711}}
  - {{name: openrouter, base_url: "{second.url}", api_key: canary-key-4712}}
routes:
  - {{name: r, steps: [{{provider: cerebras, model: a}}, {{provider: openrouter, model: b}}], hedge: {{after: 1m}}}}
"""

    def ask(self, model="r", stream=False, key=KEY):
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "canary-content"}]}
        host, port = self.address
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        request = urllib.request.Request(
            f"http://{host}:{port}/v1/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except http.client.IncompleteRead:
            return 200  # a stream that was cut


@pytest.fixture
def stage(tmp_path):
    with Switch() as first, Switch() as second:
        stage = Stage(tmp_path, first, second)
        with Daemon(tmp_path, config=stage.config) as daemon:
            stage.daemon = daemon
            stage.address = daemon.address()
            daemon.wait_for("The gateway has started")
            yield stage


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_the_metrics(stage):
    for _ in range(3):
        stage.ask()
    stage.ask(stream=True)
    stage.ask("unknown")
    text = get(f"http://127.0.0.1:{stage.admin}/metrics").decode()
    assert promtool("check", "metrics", text=text) == ""


@needs_prometheus
@pytest.mark.parametrize(
    "what",
    [
        ("check", "rules", "aigw.rules.yml"),
        ("test", "rules", "aigw.rules.test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
)
def test_promtool_finds_nothing_wrong_with_the_files(what):
    assert "SUCCESS" in promtool(*what)


@needs_prometheus
@pytest.mark.parametrize("instances", [0, 3], ids=["one process", "three instances"])
def test_y6_the_file_scrapes_each_of_several_instances_once(tmp_path, instances):
    """One that is in the list of `install.sh` too is not scraped twice. Without that list there is one process."""
    port = free_port()
    config = (CONTRIB / "prometheus.yml").read_text().replace("9464", str(port)).replace("15s", "1s")
    config = config.replace("/opt/ai-gateway", str(tmp_path)).replace("rule_files: [aigw.rules.yml]\n", "")
    names = [f"127.0.0.{number}:{port}" for number in range(1, max(1, instances) + 1)]
    if instances:
        (tmp_path / "prometheus.json").write_text(json.dumps([{"targets": names}]))
    with ExitStack() as stack:
        for name in names:
            server = HTTPServer((name.partition(":")[0], port), Metric)
            stack.callback(server.server_close)
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(server.shutdown)
        asking = Asking(stack.enter_context(prometheus(tmp_path, "", config)))
        wait(lambda: len(asking.ask('up{job="aigw"} == 1')) == len(names))
        assert sorted(each["metric"]["instance"] for each in asking.ask("up")) == names
        targets = json.loads(get(f"{asking.api}/targets", state="active"))["data"]["activeTargets"]
        assert len(targets) == len(names)


class Metric(BaseHTTPRequestHandler):
    """A gateway's /metrics, as far as a scrape goes."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(b"aigw_up 1\n")

    def log_message(self, *_):
        pass


@needs_prometheus
def test_the_queries_of_the_page_give_what_the_script_caused(stage, tmp_path):
    assert len(QUERIES) >= 8
    first, second = stage.first, stage.second
    for mode in ("ok", "500", "ok"):  # each step is used once: what was never used has no series
        first.mode = mode
        assert stage.ask() == stage.ask(stream=True) == 200
    assert stage.ask(key=LEAVES) == 200
    with prometheus(tmp_path, f"localhost:{stage.admin}") as api:
        asking = Asking(api)
        wait(lambda: asking.ask('up{job="aigw"} == 1'))
        begun = asking.scraped()  # all that is zero was seen to be
        for _ in range(10):
            assert stage.ask() == 200
        for _ in range(5):
            assert stage.ask(stream=True) == 200
        first.mode, first.rests = "429", 3  # rests as it asks
        for _ in range(4):
            assert stage.ask() == 200  # the first of them asks it, the others do not
        resting = asking.table("aigw_step_cooling_down == 1", asking.scraped())
        assert list(resting) == [(f"localhost:{stage.admin}", "aigw", "a", "cerebras", "r", "1")]
        first.mode = "500"
        wait(
            lambda: (
                json.loads(get(f"http://127.0.0.1:{stage.admin}/status.json"))["routes"][0]["steps"][0]["until"] is None
            )
        )
        assert stage.ask() == 200  # probes it, and goes on
        first.mode, second.mode = "500", "500"
        assert stage.ask() == 502  # both
        wait(
            lambda: (
                json.loads(get(f"http://127.0.0.1:{stage.admin}/status.json"))["routes"][0]["steps"][0]["until"] is None
            )
        )
        first.mode, second.mode = "cut", "ok"
        for _ in range(2):
            assert stage.ask(stream=True) == 200
        for number in range(3):
            assert stage.ask(f"unknown-{number}") == 404
        at = asking.scraped()
        window = f"[{round((at - begun) * 1000) + 5}ms]"  # from the first of these scrapes: nothing is extrapolated

        def answer(name):
            return asking.table(QUERIES[name].replace("[1h]", window), at)

        assert answer("requests, by what the client got") == {("r", "200"): 22, ("r", "502"): 1, ("other", "404"): 3}
        assert answer("who answered") == {("a", "cerebras"): 15, ("b", "openrouter"): 6}
        # One 429, one 500 of the probe, one 500 as the last resort; the second refused once. The first of the two streams
        # was the next probe, and was cut: so the second step answered the other one.
        assert answer("what failed, and how") == {
            ("a", "refused", "cerebras"): 3, ("b", "refused", "openrouter"): 1, ("a", "stream_truncated", "cerebras"): 1,
        }  # fmt: skip
        # 429 to the second; the probe to the second; the last of all from the second, or to it.
        assert answer("how often a request went on to another step") == {("r",): 3}
        # 10 plain ones of 3 + 4 and 5 streams of 10 + 20 by the first, 5 plain ones and a stream by the second.
        assert answer("tokens, as reported") == {
            ("cerebras", "prompt"): 80, ("cerebras", "completion"): 140, ("openrouter", "prompt"): 25, ("openrouter", "completion"): 40,
        }  # fmt: skip
        for name, query in QUERIES.items():
            assert asking.ask(query.replace("[1h]", "[10m]"), at) or "cools down" in name or "certificate" in name, name
        for query in queries_of_the_dashboard():
            asking.ask(query)  # it is at least one
        labels = json.loads(get(f"{api}/label/__name__/values"))["data"]
        assert "aigw_requests_total" in labels
        series = json.loads(get(f"{api}/series", **{"match[]": '{job="aigw"}'}))["data"]
        assert "unknown" not in str(series)
        assert not re.search("canary|gateway-key", str(series))


@needs_prometheus
def test_a_hundred_thousand_unknown_names_add_one_series(stage):
    """Over one connection, pipelined by hand: it is about the series, not about the speed."""

    def count():
        return sum(
            not line.startswith("#") for line in get(f"http://127.0.0.1:{stage.admin}/metrics").decode().splitlines()
        )

    before = count()
    with socket.create_connection(stage.address) as client:
        reader = client.makefile("rb")
        for start in range(0, 100_000, 100):
            for number in range(start, start + 100):
                body = b'{"model":"unknown-%d","messages":[{"role":"user","content":"x"}]}' % number
                client.sendall(
                    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%s" % (KEY.encode(), len(body), body)
                )
                length = 0
                while (line := reader.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                reader.read(length)
    assert count() - before <= 1
    assert b'aigw_requests_total{route="other",status="404",stream="false",outcome="error"} 100000.0' in get(
        f"http://127.0.0.1:{stage.admin}/metrics"
    )


# The dashboard; these need promtool only


def queries_of_the_dashboard():
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield re.sub(r"\$__rate_interval", "5m", re.sub(r"\$(job|instance|route)", ".*", target["expr"]))


def test_the_dashboard_is_one_that_loads():
    """What Grafana's importer asks for: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/"""
    assert DASHBOARD["title"] == "AI Gateway"
    assert isinstance(DASHBOARD["schemaVersion"], int)
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    names = {each["name"] for each in DASHBOARD["templating"]["list"]}
    taken = set()
    for panel in panels:
        assert {"type", "title", "targets", "gridPos", "fieldConfig", "options", "datasource"} <= set(panel)
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
        used = set(re.findall(r"\$(\w+)", json.dumps(panel))) - {"__rate_interval"}
        assert used <= names


def test_every_metric_that_is_asked_for_exists():
    """In the dashboard and the alerts; tests/test_docs.py compares docs/observability.md."""
    told = (CONTRIB / "aigw.rules.yml").read_text() + json.dumps(DASHBOARD)
    source = "".join(path.read_text() for path in (ROOT / "aigw").rglob("*.py"))
    known = set(re.findall(r'"(aigw_[a-z_]+)"', source))
    for name in set(re.findall(r"\baigw_[a-z_]+", told)):
        base = re.sub(r"_(bucket|sum|count|total)$", "", name)
        assert name in known or base in known, name


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (Debian: prometheus)")
def test_every_query_of_the_dashboard_parses(tmp_path):
    rules = [{"record": f"x:y{number}", "expr": query} for number, query in enumerate(queries_of_the_dashboard())]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "g", "rules": rules}]}))
    assert f"{len(rules)} rules found" in promtool("check", "rules", "rules.json", folder=tmp_path)
    assert os.listdir(tmp_path) == ["rules.json"]
