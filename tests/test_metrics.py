"""`/metrics`: what a scrape says after requests, failures and reloads, and what it never says."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pytest_twisted import ensureDeferred

from tests.harness import AUTH, KEY
from tests.providers import answer, as_asked, begin_stream, event, hang, later, rst, stream, then


async def scrape(gateway, **more):
    got = await gateway.get("/metrics", AUTH, **more)
    assert got.status == 200
    return got


def samples(text):
    """Each sample by its name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def value(gateway, name, **labels):
    """The sum of the samples that have these labels."""
    found = samples((await scrape(gateway)).body.decode())
    wanted = {(key, str(text)) for key, text in labels.items()}
    values = [value for (sample, *has), value in found.items() if sample == name and wanted <= set(has)]
    assert values, f"no {name} with {labels}"
    return sum(values)


@ensureDeferred
async def test_it_counts_requests_attempts_fallbacks_and_tokens(world):
    gateway = world.gateway(world.provider(answer(500)), world.provider())
    for _ in range(2):
        assert (await gateway.ask()).status == 200
    await gateway.ask({"stream": True})
    await gateway.ask(b"no json")
    await gateway.ask({"model": "unknown"})
    await gateway.ask(headers={})
    requests = "aigw_requests_total"
    assert await value(gateway, requests, route="route", status=200, stream="false") == 2
    assert await value(gateway, requests, route="route", status=200, stream="true") == 1
    assert await value(gateway, requests, route="other", status=400) == 1
    assert await value(gateway, requests, route="other", status=404) == 1
    assert await value(gateway, requests, route="other", status=401) == 1
    assert await value(gateway, "aigw_attempts_total", step=1, provider="p1", model="model-1", outcome="refused") == 3
    assert await value(gateway, "aigw_attempts_total", step=2, outcome="ok") == 3
    assert await value(gateway, "aigw_fallbacks_total", route="route") == 3
    assert await value(gateway, "aigw_tokens_total", provider="p2", type="prompt") == 6
    assert await value(gateway, "aigw_tokens_total", provider="p2", type="completion") == 8
    assert await value(gateway, "aigw_request_duration_seconds_count", route="route") == 3
    assert await value(gateway, "aigw_time_to_first_token_seconds_count", route="route") == 1
    assert await value(gateway, "aigw_overhead_seconds_count", route="route") == 3
    assert await value(gateway, "aigw_step_resting", step=1) == 1
    assert await value(gateway, "aigw_step_resting", step=2) == 0
    assert await value(gateway, "aigw_step_rest_end_timestamp_seconds", step=1) > 1.6e9


@ensureDeferred
async def test_overhead_is_neither_the_providers_time_nor_the_clients(world):
    """A provider that takes its time, a pause before a retry and a slow body are no overhead."""
    gateway = world.gateway(
        world.provider(later(answer(503), 0.2), later(answer(), 0.2)),
        top={"routes": [{"name": "route", "steps": [{"provider": "p1", "model": "m", "retries": 1}]}]},
    )
    assert (await gateway.ask()).status == 200
    assert await value(gateway, "aigw_request_duration_seconds_sum", route="route") > 0.6
    assert await value(gateway, "aigw_overhead_seconds_sum", route="route") < 0.2


@ensureDeferred
async def test_broken_streams_and_clients_that_leave_have_outcomes_of_their_own(world):
    gateway = world.gateway(world.provider(then(begin_stream(event({"content": "a"})), later(rst)), hang))
    await gateway.ask({"stream": True})
    assert await value(gateway, "aigw_attempts_total", outcome="stream_reset") == 1
    assert await value(gateway, "aigw_requests_total", status=200, stream="true") == 1


@ensureDeferred
async def test_in_flight_and_connections_are_those_of_now(world):
    from tests.harness import HELLO, request, until

    gateway = world.gateway(world.provider(begin_stream(event({"content": "a"}))))
    client = await gateway.send(request({**HELLO, "stream": True}))
    await until(lambda: client.answer.pieces)
    assert await value(gateway, "aigw_connections") == 2  # the scrape's own too
    assert await value(gateway, "aigw_requests_in_flight", route="route") == 1
    client.transport.abortConnection()
    await until(lambda: world.records)
    assert await value(gateway, "aigw_requests_in_flight", route="route") == 0
    assert await value(gateway, "aigw_requests_total", status=499, stream="true") == 1


@ensureDeferred
async def test_reloads_are_told_and_counts_live_on(world):
    gateway = world.gateway(world.provider())
    await gateway.ask()
    assert await value(gateway, "aigw_config_last_reload_successful") == 1
    gateway.tree["routes"][0]["nonsense"] = 1
    assert not await gateway.reload()
    assert await value(gateway, "aigw_config_reloads_total", result="failure") == 1
    assert await value(gateway, "aigw_config_last_reload_successful") == 0
    del gateway.tree["routes"][0]["nonsense"]
    gateway.tree["routes"].append({"name": "second", "steps": [{"provider": "p1", "model": "m"}]})
    assert await gateway.reload()
    assert await value(gateway, "aigw_config_reloads_total", result="success") == 1
    assert await value(gateway, "aigw_config_last_reload_successful") == 1
    assert await value(gateway, "aigw_requests_total", route="route", status=200) == 1
    assert await value(gateway, "aigw_requests_total", route="second", status=200) == 0
    del gateway.tree["routes"][0]
    assert await gateway.reload()
    assert b'route="route"' not in (await scrape(gateway)).body


@ensureDeferred
async def test_unknown_models_add_one_series(world):
    gateway = world.gateway(world.provider())
    before = len(samples((await scrape(gateway)).body.decode()))
    for number in range(30):
        await gateway.ask({"model": f"unknown-{number}"})
    text = (await scrape(gateway)).body.decode()
    assert len(samples(text)) <= before + 1
    assert "unknown-" not in text


@ensureDeferred
async def test_the_certificate_the_build_and_the_process_are_there(world):
    gateway = world.gateway(world.provider(), tls=True)
    assert await value(gateway, "aigw_certificate_expiry_timestamp_seconds") > 1.6e9
    assert await value(gateway, "aigw_build_info") == 1
    assert await value(gateway, "process_resident_memory_bytes") > 1e6
    assert await value(gateway, "aigw_event_loop_lag_seconds") >= 0


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, "text/plain"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text"),
        ("*/*", "text/plain"),
    ],
)
@ensureDeferred
async def test_it_speaks_both_formats(world, accept, kind):
    gateway = world.gateway(world.provider())
    got = await gateway.get("/metrics", {**AUTH, **({"Accept": accept} if accept else {})})
    assert got.headers["content-type"].startswith(kind)
    assert (got.body.endswith(b"# EOF\n")) == ("openmetrics" in kind)
    assert got.headers["cache-control"] == "no-store"


@ensureDeferred
async def test_it_takes_a_key(world):
    gateway = world.gateway(world.provider())
    assert (await gateway.get("/metrics", {})).status == 401
    assert (await gateway.get("/metrics", {"X-Api-Key": "wrong"})).status == 401
    assert (await gateway.get("/metrics", AUTH, method="POST")).status == 405


@ensureDeferred
async def test_no_key_is_on_it_even_where_a_name_holds_one(world):
    gateway = world.gateway_of(
        {
            "api_key": KEY,
            "listen": ["tcp:0:interface=127.0.0.1"],
            "providers": [{"name": f"p-{KEY}", "base_url": "http://127.0.0.1:1/v1", "api_key": "canary-9876"}],
            "routes": [{"name": "canary-9876", "steps": [{"provider": f"p-{KEY}", "model": "m"}]}],
        }
    )
    await gateway.ask({"model": "canary-9876"})
    text = (await scrape(gateway)).body.decode()
    assert not re.search(f"canary-9876|{KEY}", text)
    assert 'route="***"' in text


@ensureDeferred
async def test_stream_true_is_no_more_than_a_label(world):
    gateway = world.gateway(
        world.provider(as_asked(streamed=stream(event({"content": "a"}), event(finish_reason="stop"))))
    )
    await gateway.ask({"stream": True})
    assert set(re.findall(r'stream="(\w+)"', (await scrape(gateway)).body.decode())) == {"true", "false"}


@ensureDeferred
async def test_a_route_may_be_named_other(world):
    gateway = world.gateway(
        world.provider(), top={"routes": [{"name": "other", "steps": [{"provider": "p1", "model": "m"}]}]}
    )
    await gateway.ask({"model": "other"})
    await gateway.ask({"model": "unknown"})
    assert await value(gateway, "aigw_requests_total", route="other", status=200) == 1
