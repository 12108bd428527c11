"""Traces: W3C's header in and out, spans of requests and attempts, and collectors that misbehave."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.schemas import Schemas
from pytest_twisted import ensureDeferred

from aigw.telemetry.redaction import Redaction
from aigw.telemetry.spans import SEMCONV, spans_of
from aigw.telemetry.trace_context import Trace
from aigw.telemetry.tracing import Tracing, is_enabled
from tests.harness import AUTH, HELLO, KEY, bounded, request, until
from tests.providers import answer, begin_stream, completion, event, stream
from tests.test_metrics import value
from tests.test_tally import attempt, record

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-1] + "0"


class Collector:
    """OTLP over HTTP; ``mode`` is ok, refuse or hang."""

    def __init__(self, mode="ok"):
        self.mode = mode
        self.requests = []
        self.released = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                if collector.mode == "hang":
                    collector.released.wait(20)
                if collector.mode == "ok":
                    collector.requests.append(
                        (self.path, dict(self.headers), ExportTraceServiceRequest.FromString(body))
                    )
                self.send_response(200 if collector.mode == "ok" else 400)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def spans(self):
        return [
            span
            for _, _, sent in self.requests
            for each in sent.resource_spans
            for scope in each.scope_spans
            for span in scope.spans
        ]

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def collector(monkeypatch):
    collector = Collector()
    set_environment(monkeypatch, collector.url)
    yield collector
    collector.close()


def set_environment(monkeypatch, url, **more):
    """The SDK reads the process's own."""
    names = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_BSP_SCHEDULE_DELAY": "50", **more}
    for name, text in names.items():
        monkeypatch.setenv(name, text)


def traced(world, collector, *steps, **more):
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    return world.gateway(*steps or [world.provider()], environ={**environ, **more.pop("environ", {})}, **more)


def attributes(span):
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) if each.value.WhichOneof("value") else None
        for each in span.attributes
    }


# The header


@pytest.mark.parametrize(
    "header",
    [
        None, b"", b"nonsense", b"ff" + PARENT[2:].encode(), PARENT.encode() + b"-x", PARENT.upper().encode(),
        b"00-" + b"0" * 32 + PARENT[35:].encode(), PARENT[:36].encode() + b"0" * 16 + b"-01",
    ],
)  # fmt: skip
def test_a_malformed_parent_is_none(header):
    trace = Trace(header)
    assert trace.parent is None
    assert trace.sampled
    assert len(trace.trace_id) == 32


@pytest.mark.parametrize(("header", "sampled"), [(PARENT, True), (UNSAMPLED, False)])
def test_a_parent_is_believed(header, sampled):
    trace = Trace(header.encode())
    assert (trace.trace_id, trace.parent, trace.sampled) == (PARENT[3:35], PARENT[36:52], sampled)


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://x"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_they_are_off_unless_an_endpoint_is_set(environ, on):
    assert is_enabled(environ) is on


# The spans


@ensureDeferred
async def test_a_span_for_the_request_and_one_for_each_attempt(world, collector):
    first, second = world.provider(answer(429)), world.provider()
    gateway = traced(world, collector, first, second)
    got = await gateway.ask(headers={**AUTH, "traceparent": PARENT, "X-Request-Id": "id-1"})
    assert got.status == 200
    await until(lambda: len(collector.spans()) == 3)
    server, refused, good = collector.spans()
    assert [span.name for span in (server, refused, good)] == [
        "POST /v1/chat/completions",
        "chat model-1",
        "chat model-2",
    ]
    assert {span.trace_id.hex() for span in (server, refused, good)} == {PARENT[3:35]}
    assert server.parent_span_id.hex() == PARENT[36:52]
    assert refused.parent_span_id == good.parent_span_id == server.span_id
    assert [span.kind for span in (server, refused, good)] == [2, 3, 3]
    assert server.start_time_unix_nano <= refused.start_time_unix_nano <= refused.end_time_unix_nano
    assert (
        refused.end_time_unix_nano <= good.start_time_unix_nano <= good.end_time_unix_nano <= server.end_time_unix_nano
    )
    assert abs(server.end_time_unix_nano / 1e9 - time.time()) < 10
    for provider, span in ((first, refused), (second, good)):
        assert provider.requests[0].header("traceparent") == f"00-{PARENT[3:35]}-{span.span_id.hex()}-01"
    said = attributes(server)
    assert (said["http.response.status_code"], said["aigw.route"], said["aigw.request_id"]) == (200, "route", "id-1")
    said = attributes(refused)
    assert (said["http.response.status_code"], said["error.type"], said["aigw.outcome"]) == (429, "429", "refused")
    assert (refused.status.code, refused.status.message) == (2, "answered 429")
    said = attributes(good)
    assert (said["gen_ai.provider.name"], said["gen_ai.request.model"], said["gen_ai.operation.name"]) == (
        "p2",
        "model-2",
        "chat",
    )
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (3, 4)
    assert (good.status.code, server.status.code) == (0, 0)
    (path, _, sent), *_ = collector.requests
    assert path == "/v1/traces"
    assert sent.resource_spans[0].scope_spans[0].schema_url == SEMCONV
    about = {each.key: each.value.string_value for each in sent.resource_spans[0].resource.attributes}
    assert about["service.name"] == "aigw"
    assert await value(gateway, "aigw_spans_exported_total") == 3


@ensureDeferred
async def test_a_client_without_a_parent_gets_a_trace_of_its_own(world, collector):
    provider = world.provider()
    gateway = traced(world, collector, provider)
    await gateway.ask(headers={**AUTH, "traceparent": "nonsense"})
    await until(lambda: len(collector.spans()) == 2)
    server, attempted = collector.spans()
    assert server.parent_span_id == b""
    assert provider.requests[0].header("traceparent") == f"00-{server.trace_id.hex()}-{attempted.span_id.hex()}-01"


@pytest.mark.parametrize(
    ("traceparent", "is_child"),
    [
        (PARENT, True),
        (f"{PARENT}-more", False),
        (f"cc{PARENT[2:]}", True),
        (f"01{PARENT[2:]}-what-the-future-will-be-like", True),
        (f"01{PARENT[2:]}-", True),
        (f"01{PARENT[2:]}.more", False),
        (f"ff{PARENT[2:]}", False),
        (f"ff{PARENT[2:]}-more", False),
    ],
)
def test_r4_a_parent_of_a_later_version_of_traceparent_may_have_more_fields(traceparent, is_child):
    """W3C Trace Context, section 4.3: a parser reads what it knows of a version above its own."""
    trace = Trace(traceparent.encode())
    assert (trace.parent is not None) is is_child
    assert (trace.trace_id == PARENT[3:35]) is is_child


@ensureDeferred
async def test_what_its_parent_does_not_sample_is_passed_on_and_not_exported(world, collector):
    provider = world.provider()
    gateway = traced(world, collector, provider)
    await gateway.ask(headers={**AUTH, "traceparent": UNSAMPLED})
    await gateway.ask()
    await until(lambda: len(collector.spans()) == 2)
    assert PARENT[3:35] not in {span.trace_id.hex() for span in collector.spans()}
    assert provider.requests[0].header("traceparent").startswith(PARENT[:36])
    assert provider.requests[0].header("traceparent").endswith("-00")


@ensureDeferred
async def test_a_sampler_of_the_environment_is_obeyed(world, collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    provider = world.provider()
    gateway = traced(world, collector, provider)
    assert (await gateway.ask()).status == 200
    assert provider.requests[0].header("traceparent").endswith("-00")
    assert await value(gateway, "aigw_spans_exported_total") == 0


@ensureDeferred
async def test_r4_without_traces_the_parent_goes_on_as_it_came(world):
    provider = world.provider()
    await world.gateway(provider).ask(headers={**AUTH, "traceparent": PARENT})
    assert provider.requests[0].header("traceparent") == PARENT


@ensureDeferred
async def test_streams_refusals_and_clients_that_leave(world, collector):
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 4}}
    good = stream(event({"content": "a"}), event(finish_reason="stop", usage=usage), b"data: [DONE]\n\n")
    gateway = traced(world, collector, world.provider(good, begin_stream(event({"content": "a"}))))
    await gateway.ask({"stream": True})
    await until(lambda: len(collector.spans()) == 2)
    said = attributes(collector.spans()[1])
    assert (said["gen_ai.usage.cache_read.input_tokens"], said["gen_ai.request.stream"]) == (4, True)
    assert 0 <= said["gen_ai.response.time_to_first_chunk"] < 5
    client = await gateway.send(request({**HELLO, "stream": True}))
    await until(lambda: client.answer.pieces)
    client.transport.abortConnection()
    await until(lambda: len(collector.spans()) == 4)
    assert [attributes(span)["aigw.outcome"] for span in collector.spans()[2:]] == ["client_gone", "client_gone"]
    await gateway.ask({"model": "unknown"})
    await gateway.ask(headers={})
    await until(lambda: len(collector.spans()) == 6)
    assert [attributes(span)["http.response.status_code"] for span in collector.spans()[4:]] == [404, 401]


@ensureDeferred
async def test_b9_no_key_and_no_content_is_in_a_span(world, collector):
    body = b'{"error": {"message": "key provider-key-1 of canary-content is wrong"}}'
    gateway = traced(
        world, collector, world.provider(answer(401, body)), world.provider(answer(body=completion("canary-content")))
    )
    said = {**AUTH, "X-Request-Id": f"id-{KEY}"}  # a client that shows its key where it should not
    await gateway.ask({"messages": [{"role": "user", "content": "canary-content"}]}, headers=said)
    await until(lambda: len(collector.spans()) == 3)
    text = str(collector.requests)
    assert not [each for each in (KEY, "provider-key", "canary-content") if each in text]


def test_names_are_those_of_the_pinned_version():
    assert Schemas.V1_44_0.value == SEMCONV
    known = {text for name, text in vars(gen_ai_attributes).items() if name.startswith("GEN_AI")}
    trace = Trace(None)
    trace.sent(attempt_like(), 1000.0)
    trace.attempted(attempt(1), 1000.1)
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "cached_tokens": 3, "reasoning_tokens": 4}
    spans = spans_of(record(trace=trace, usage=usage, stream=True, ttft=0.1), 0.0)
    used = {name for span in spans for name in span.attributes if name.startswith("gen_ai")}
    assert len(used) == 9
    assert used <= known


def attempt_like():
    import msgspec

    class Attempt(msgspec.Struct):
        headers: dict = {}

    return Attempt()


# Collectors that misbehave


@pytest.mark.parametrize("mode", ["down", "refuse", "hang"])
@ensureDeferred
async def test_a_bad_collector_costs_no_request_anything(world, monkeypatch, mode):
    """Requests are answered as ever, what does not fit is dropped and counted, and a stop waits a bounded time."""
    collector = Collector(mode)
    world._closers.append(collector.close)
    if mode == "down":
        collector.close()
    set_environment(monkeypatch, collector.url, OTEL_EXPORTER_OTLP_TIMEOUT="1")
    gateway = traced(world, collector, environ={"OTEL_BSP_MAX_QUEUE_SIZE": "4"})
    started = time.monotonic()
    for _ in range(12):
        assert (await gateway.ask()).status == 200
    assert time.monotonic() - started < 5
    tracing = gateway.service._telemetry.tracing
    await until(lambda: tracing.dropped_queue + tracing.dropped_export > 0, 10.0)
    if mode == "hang":
        assert await value(gateway, "aigw_spans_dropped_total", reason="queue_full") > 0
    if mode != "hang":
        await until(
            lambda: tracing.dropped_export > 0 and any("cannot be exported" in line for line in world.log), 10.0
        )
        assert sum("cannot be exported" in line for line in world.log) == 1
    assert tracing.queued <= 4
    started = time.monotonic()
    await bounded(gateway.service.stopService())
    assert time.monotonic() - started < 4
    collector.released.set()


def test_without_the_extra_it_says_so_and_goes_on(monkeypatch, capsys):
    from twisted.internet.task import Clock

    from aigw.telemetry import logs

    said = []
    monkeypatch.setitem(__import__("sys").modules, "aigw.telemetry.otlp", None)
    monkeypatch.setattr(logs, "warn", said.append)
    tracing = Tracing(Clock(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, Redaction())
    tracing.start()
    assert "pip install 'aigw[otel]'" in said[0]
    tracing.end(record(trace=tracing.begin(None)))
    assert tracing.stop().called


@pytest.mark.parametrize(("name", "value"), [("OTEL_BSP_SCHEDULE_DELAY", "0"), ("OTEL_ATTRIBUTE_COUNT_LIMIT", "x")])
def test_what_the_sdk_refuses_in_its_variables_is_said_and_costs_only_the_traces(monkeypatch, name, value):
    from twisted.internet.task import Clock

    from aigw.telemetry import logs

    said = []
    monkeypatch.setattr(logs, "warn", said.append)
    monkeypatch.setenv(name, value)
    tracing = Tracing(Clock(), {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, Redaction())
    tracing.start()
    assert said[0].startswith("No traces are exported: OpenTelemetry refuses the OTEL_* variables: ")
    tracing.end(record(trace=tracing.begin(None)))
    assert tracing.stop().called


def test_d3_the_reactor_exports_nothing_itself(monkeypatch):
    """Putting a request into the queue is all that it does, and takes microseconds."""
    from twisted.internet.task import Clock

    tracing = Tracing(Clock(), {}, Redaction())
    taken = []
    tracing._processor = type("Processor", (), {"on_end": lambda _, finished: taken.append(finished)})()
    trace = Trace(None)
    tracing.end(record(trace=trace))
    assert taken[0].record.trace is trace
    assert taken[0].context.trace_flags.sampled
