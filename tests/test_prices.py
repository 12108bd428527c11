"""E1 to E4: the file of prices, the disjoint kinds of tokens, and what an answer costs."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from aigw.config import loader
from aigw.config.prices import load_prices, parse_prices, unpriced
from aigw.errors import ConfigError
from aigw.protocols.charges import charged_tokens, cost
from aigw.protocols.endpoints import ENDPOINTS
from aigw.protocols.usage import ReportedUsage, charges_in, counts_in, logged

PRICES = """
p:
  plain: {input: 2.5, output: 10}
  cached: {input: 2.5, output: 10, cache_read: 1.25}
  thinks: {input: 2, output: 8, cache_read: 0.5, reasoning: 12}
  claude: {input: 3, output: 15, cache_read: 0.3, cache_write: 3.75}
  small: {input: 0.075, output: 0.3, cache_read: 0.01875}
  embed: {input: 0.02}
  free: {input: 0, output: 0}
q:
  "*": {input: 1, output: 2}
"""
TABLE, _ = parse_prices(PRICES, "prices.yaml")


def chat(prompt, completion, cached=None, reasoning=None, total=None, **more):
    usage = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total or prompt + completion,
        **more,
    }
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached, "audio_tokens": 0}
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning, "accepted_prediction_tokens": 0}
    return usage


def response(given, made, cached=0, reasoning=0):
    return {
        "input_tokens": given, "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": made, "output_tokens_details": {"reasoning_tokens": reasoning}, "total_tokens": given + made,
    }  # fmt: skip


def message(given, made, read=0, written=0, **more):
    return {
        "input_tokens": given,
        "output_tokens": made,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        **more,
    }


# The model, what the provider reported, and the cost in USD, computed by hand: the sum of tokens times USD per million.
FORTY = [
    # OpenAI, chat
    ("plain", chat(1000, 50), "0.003"),  # 2500 + 500 = 3000 millionths
    ("plain", chat(1, 1), "0.0000125"),  # 2.5 + 10
    ("plain", chat(0, 0), "0"),
    ("plain", chat(1000, 50, cached=400), "0.003"),  # no price for cached: all is input
    ("cached", chat(1000, 50, cached=400), "0.0025"),  # 600 * 2.5 + 400 * 1.25 + 50 * 10 = 1500 + 500 + 500
    ("cached", chat(1000, 50, cached=1000), "0.00175"),  # 1250 + 500
    ("cached", chat(1000, 50, cached=0, reasoning=30), "0.003"),  # no price for reasoning: all is output
    ("thinks", chat(100, 80, reasoning=64), "0.001096"),  # 200 + 16 * 8 + 64 * 12 = 200 + 128 + 768
    ("thinks", chat(100, 80, cached=40, reasoning=80), "0.0011"),  # 60 * 2 + 40 * 0.5 + 80 * 12 = 120 + 20 + 960
    ("thinks", chat(100, 80), "0.00084"),  # 200 + 640
    ("small", chat(3, 7), "0.000002325"),  # 0.225 + 2.1
    ("small", chat(123_456, 7_890, cached=100_000), "0.0060012"),  # 23456 * 0.075 + 100000 * 0.01875 + 7890 * 0.3 = 1759.2 + 1875 + 2367
    ("plain", chat(2_000_000, 1_000_000), "15"),  # 5 + 10
    ("plain", {"prompt_tokens": 10, "completion_tokens": 5}, "0.000075"),  # 25 + 50, without a total
    ("plain", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "prompt_tokens_details": None}, "0.000075"),
    # DeepSeek, Moonshot, Groq
    ("cached", chat(100, 10, prompt_cache_hit_tokens=60, prompt_cache_miss_tokens=40), "0.000275"),  # 40 * 2.5 + 60 * 1.25 + 100
    ("cached", chat(100, 10, cached_tokens=60), "0.000275"),
    ("plain", chat(10, 5, queue_time=0.01, prompt_time=0.2, total_time=0.3), "0.000075"),
    # xAI: reasoning is beside the completion, as the total shows
    ("thinks", chat(32, 9, reasoning=300, total=341), "0.003736"),  # 64 + 72 + 3600
    ("plain", chat(32, 9, reasoning=300, total=341), "0.00317"),  # 80 + 309 * 10
    # Gemini: thoughts are in the total alone
    ("plain", chat(8, 9, total=100), "0.00094"),  # 20 + (9 + 83) * 10
    # Responses
    ("plain", response(100, 20), "0.00045"),  # 250 + 200
    ("cached", response(328, 52, cached=128), "0.00118"),  # 200 * 2.5 + 128 * 1.25 + 520 = 500 + 160 + 520
    ("thinks", response(75, 1186, reasoning=1024), "0.013734"),  # 150 + 162 * 8 + 1024 * 12 = 150 + 1296 + 12288
    ("thinks", response(75, 1186, cached=25, reasoning=1024), "0.0136965"),  # 50 * 2 + 25 * 0.5 + 1296 + 12288
    # Messages
    ("claude", message(25, 15), "0.0003"),  # 75 + 225
    ("claude", message(2095, 503), "0.01383"),  # 6285 + 7545
    ("claude", message(50, 503, read=0, written=248), "0.008625"),  # 150 + 930 + 7545
    ("claude", message(50, 503, read=100_000), "0.037695"),  # 150 + 30000 + 7545
    ("claude", message(4, 1, read=1800, written=300), "0.001692"),  # 12 + 540 + 1125 + 15
    ("claude", message(4, 1, read=1800, written=300, cache_creation={"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 0}), "0.001692"),
    ("claude", {"input_tokens": 9, "output_tokens": 3, "service_tier": "standard", "server_tool_use": {"web_search_requests": 0}}, "0.000072"),
    ("plain", message(50, 10, read=100, written=200), "0.000975"),  # (50 + 100 + 200) * 2.5 + 100
    # Embeddings and reranking
    ("embed", {"prompt_tokens": 8, "total_tokens": 8}, "0.00000016"),
    ("embed", {"total_tokens": 1_000_000}, "0.02"),
    # Images and audio
    ("plain", {"input_tokens": 50, "output_tokens": 4160, "total_tokens": 4210, "input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}, "0.041725"),  # 125 + 41600
    ("plain", {"type": "tokens", "input_tokens": 14, "input_token_details": {"text_tokens": 0, "audio_tokens": 14}, "output_tokens": 45, "total_tokens": 59}, "0.000485"),  # 35 + 450
    # The provider's own amount
    ("plain", chat(194, 2, cost=0.95), "0.95"),
    ("unknown", chat(10, 5, cost=0.000015, is_byok=False, cost_details={"upstream_inference_cost": None}), "0.000015"),
    ("plain", chat(10, 5, cost=0), "0"),  # a free model
    ("plain", chat(10, 5, cost=0.0005, is_byok=True, cost_details={"upstream_inference_cost": 0.01}), "0.0105"),
    ("unknown", chat(10, 5, cost={"input_tokens_cost": 0.001, "output_tokens_cost": 0.002, "request_cost": 0.005, "total_cost": 0.008}), "0.008"),
    # No tokens, and nothing costs anything
    ("free", {"type": "duration", "seconds": 30}, "0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "usage", "expected"), FORTY, ids=[f"{n}-{each[0]}" for n, each in enumerate(FORTY, 1)]
)
def test_e2_the_cost_of_forty_usage_objects_is_what_a_hand_computes(model, usage, expected):
    """They reach the gateway as JSON, alone, in an event, and at the end of a large body."""
    assert len(FORTY) >= 40
    whole = json.dumps({"choices": [], "usage": usage}).encode()
    for data in (whole, b"data: " + whole + b"\n\n", b'{"x": "%s", ' % (b"y" * 9000) + whole[1:]):
        reported = ReportedUsage()
        reported.add(data)
        found = cost(TABLE, "p", model, reported.charges())
        assert found is not None
        assert abs(found - Decimal(expected)) < Decimal("1e-9")
        assert found == Decimal(expected)


@pytest.mark.parametrize(
    "usage", [each[1] for each in FORTY if "total_tokens" in each[1] and "prompt_tokens" in each[1]]
)
def test_e2_no_token_is_in_two_kinds(usage):
    tokens = charged_tokens(charges_in(json.dumps(usage).encode()) or {})
    assert sum(tokens.values()) == usage["total_tokens"]
    assert min(tokens.values()) >= 0


@pytest.mark.parametrize(
    ("usage", "kinds"),
    [
        (chat(1000, 50, cached=400, reasoning=20), {"input": 600, "output": 30, "cache_read": 400, "reasoning": 20}),
        (response(1000, 50, 400, 20), {"input": 600, "output": 30, "cache_read": 400, "reasoning": 20}),
        (message(1000, 50, 400, 7), {"input": 1000, "output": 50, "cache_read": 400, "cache_write": 7}),
        (chat(10, 5, cached=100), {"input": 10, "output": 5, "cache_read": 100}),  # cannot be a part of the prompt
        (chat(10, 5, reasoning=9), {"input": 10, "output": 5, "reasoning": 9}),  # cannot be a part of the completion
        (chat(10, 5, cached=4, total=19), {"input": 10, "output": 5, "cache_read": 4}),  # beside it, as the total shows
        (chat(10, 5, cached=4, reasoning=3, total=22), {"input": 10, "output": 5, "cache_read": 4, "reasoning": 3}),
        (chat(100, 5, **{"prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 30}}), {"input": 50, "output": 5, "cache_read": 20, "cache_write": 30}),
        (chat(100, 5, cached=20, cache_read_input_tokens=20), {"input": 80, "output": 5, "cache_read": 20}),  # LiteLLM: both names
        ({"prompt_tokens": 4}, {"input": 4}),
        ({}, {}),
        ({"type": "duration", "seconds": 3.5}, {}),
    ],
)  # fmt: skip
def test_e2_kinds_are_disjoint(usage, kinds):
    assert charged_tokens(charges_in(json.dumps(usage).encode()) or {}) == kinds


@pytest.mark.parametrize(
    "amount",
    ['"-1"', "-1", "-0.5", "true", "null", "[1]", "{}", "NaN", "Infinity", "1e400", "1e999999999999", '"x"', "1000001"],
)
def test_e3_an_amount_that_is_none_is_not_used(amount):
    data = b'{"prompt_tokens": 10, "completion_tokens": 5, "cost": %s}' % amount.encode()
    charges = charges_in(data)
    assert charges is not None
    assert "cost" not in charges
    assert cost(TABLE, "p", "plain", charges) == Decimal("0.000075")


def test_e3_an_amount_keeps_its_digits():
    charges = charges_in(b'{"cost": 0.000123456789}')
    assert charges is not None
    assert cost(TABLE, "nobody", "m", charges) == Decimal("0.000123456789")


@pytest.mark.parametrize(
    ("provider", "model", "usage", "known"),
    [
        ("p", "nothing", chat(1, 1), False),
        ("nobody", "plain", chat(1, 1), False),
        ("q", "any", chat(1, 1), True),  # the star
        ("p", "plain", {}, False),  # nothing was reported
        ("p", "embed", chat(1, 1), False),  # output has no price
        ("p", "embed", chat(1, 0), True),
        ("p", "free", {}, True),
    ],
)
def test_e4_what_has_no_price_has_no_cost(provider, model, usage, known):
    found = cost(TABLE, provider, model, charges_in(json.dumps(usage).encode()) or {})
    assert (found is not None) == known


def test_e2_the_counts_in_the_log_are_those_of_before():
    """B9: what is charged and not logged, and the amount, are in no log line."""
    usage = chat(100, 5, cost=0.5, **{"prompt_tokens_details": {"cached_tokens": 20, "cache_write_tokens": 30}})
    data = json.dumps(usage).encode()
    counts = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105, "cached_tokens": 20}
    assert counts_in(data) == counts == logged(charges_in(data) or {})
    scanner = ENDPOINTS["messages"].scanner()
    scanner.usage.add(b'{"usage": %s}' % data)
    assert scanner.usage.counts() == counts
    assert scanner.usage.charges() == {**counts, "cache_write_tokens": 30, "cost": Decimal("0.5")}


# The file


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        (
            "p: {m: {inpt: 3, output: 1}}",
            ["line 1: p.m.inpt: unknown setting; did you mean input?", "line 1: p.m.input: is required and missing"],
        ),
        ("p:\n  m: {input: -1}", ["line 2: p.m.input: -1 is not a price; write USD per million tokens"]),
        ("p: {m: {input: '$3'}}", ["line 1: p.m.input: '$3' is not a price"]),
        ("p: {m: {input: .inf}}", ["p.m.input: inf is not a price"]),
        ("p: {m: {input: true}}", ["p.m.input: true is not a price"]),
        ("p: {m: {input: }}", ["p.m.input: an empty value is not a price"]),
        ("p: {m: 3}", ["line 1: p.m: expected a mapping with input, output"]),
        ("p: {}", ["line 1: p: expected a mapping of models to their prices"]),
        ("p: 3\nq: [1]", ["line 1: p: expected a mapping of models", "line 2: q: expected a mapping of models"]),
        ("- p", ["expected a mapping of providers to their models"]),
        ("p: {m: {input: 1}, m: {input: 2}}", ["p.m: is written twice, on line 1"]),
        ("p: {4.1: {input: 1}}", ["is not the name of a model; write a string, in quotes"]),
        ("p: {m: {input: 1", ["line 1"]),
        (f"p: {{m: {{input: 0x{'f' * 9000}}}}}", ["p.m.input: the number is not a price"]),
        (f"p:\n  ? 0x{'f' * 9000}\n  : {{input: 1}}", ["is not the name of a model; write a string"]),
        (f"? 0x{'f' * 9000}\n: {{m: {{input: 1}}}}", ["is not the name of a provider; write a string"]),
    ],
)
def test_e1_all_mistakes_of_the_file_are_reported_with_their_lines(text, mistakes):
    with pytest.raises(ConfigError) as raised:
        parse_prices(text, "prices.yaml")
    for part, found in zip(mistakes, raised.value.mistakes, strict=True):
        assert found.startswith("prices.yaml")
        assert part in found


def test_e1_a_number_may_be_written_in_any_way():
    prices, warnings = parse_prices(
        'p: {m: {input: 3, output: "0.60", cache_read: 7.5e-2, cache_write: 1e1}}', "prices.yaml"
    )
    found = prices.of("p", "m")
    assert found is not None
    assert (found.input, found.output, found.cache_read, found.cache_write) == (3, Decimal("0.6"), Decimal("0.075"), 10)
    assert warnings == []


def test_e1_a_price_for_one_token_is_warned_of():
    _, warnings = parse_prices("p: {m: {input: 0.0000025, output: 0}}", "prices.yaml")
    assert warnings == [
        "prices.yaml, line 1: p.m.input: 2.5e-06 is very little for a million tokens; multiply a price for one token by 1000000"
    ]


def test_e1_an_empty_file_has_no_prices():
    assert parse_prices("", "prices.yaml")[0].models == {}


@pytest.mark.parametrize(("make", "reason"), [(lambda path: None, "cannot be read"), (lambda path: path.mkdir(), "not a regular file"), (lambda path: path.write_bytes(b"p: \xff"), "not UTF-8")])  # fmt: skip
def test_e1_a_file_that_cannot_be_read_is_a_mistake(tmp_path, make, reason):
    make(tmp_path / "prices.yaml")
    with pytest.raises(ConfigError, match=reason):
        load_prices(str(tmp_path / "prices.yaml"))


def tree_with(**more):
    return {
        "api_key": "a-key-of-the-gateway-for-tests",
        "providers": [{"name": "p", "base_url": "http://p/v1"}],
        "routes": [{"name": "r", "steps": [{"provider": "p", "model": "m"}, {"provider": "p", "model": "n"}]}],
        **more,
    }


def test_e1_mistakes_in_both_files_are_reported_at_once(tmp_path):
    (tmp_path / "prices.yaml").write_text("p: {m: {input: x}}")
    with pytest.raises(ConfigError) as raised:
        loader.build(tree_with(prices="prices.yaml", drain="x"), {}, tmp_path)
    assert [each.partition(": ")[0] for each in raised.value.mistakes] == ["drain", f"{tmp_path}/prices.yaml, line 1"]


def test_e1_the_prices_are_a_part_of_the_configuration(tmp_path):
    (tmp_path / "prices.yaml").write_text("p: {m: {input: 1}}\nproviderr: {m: {input: 1}}")
    config = loader.build(tree_with(prices="prices.yaml"), {}, tmp_path)
    assert [step.model for step in unpriced(config.routes["r"].steps, config.price_list)] == ["n"]
    assert [each for each in config.warnings if "no provider is named 'providerr'" in each]
    assert config.keeps_accounts


def test_e10_without_the_settings_no_accounts_are_kept():
    config = loader.build(tree_with(), {}, Path("/nonexistent"))
    assert (config.prices, config.usage, config.keeps_accounts) == (None, None, False)
    assert len(unpriced(config.routes["r"].steps, config.price_list)) == 2


# Budgets in USD


def budget_of(folder: Path, prices: str, **more):
    (folder / "prices.yaml").write_text(prices)
    key = {
        "name": "alice",
        "key": "aigw_0123456789abcdef0123456789abcdef01234567",
        "budget": [{"usd": 10, "per": "day"}],
        **more.pop("key", {}),
    }
    return loader.build(tree_with(prices="prices.yaml", keys=[key], **more), {}, folder)


def test_e4_a_budget_in_usd_needs_a_price_for_each_step(tmp_path):
    with pytest.raises(ConfigError) as raised:
        budget_of(tmp_path, "p: {m: {input: 1, output: 1}}")
    assert raised.value.mistakes == [
        "prices: step 2 of the route 'r' (p n) has no price, and a key with a budget in USD may use it; add the price to prices, or write unknown_price"
    ]
    assert budget_of(tmp_path, 'p: {"*": {input: 1, output: 1}}')
    assert budget_of(tmp_path, "p: {m: {input: 1, output: 1}}", unknown_price=5)
    assert budget_of(tmp_path, "", key={"budget": [{"tokens": "1M", "per": "day"}]})
    assert budget_of(tmp_path, "", key={"routes": ["other"]})


@pytest.mark.parametrize("pattern", ["alias", "al*", "open-*", "open-4", "open-4*", "*"])
def test_e4_a_route_is_used_by_each_of_its_names(tmp_path, pattern):
    routes = [{"name": "r", "also": ["alias", "open-*"], "steps": [{"provider": "p", "model": "m"}]}]
    with pytest.raises(ConfigError, match="has no price"):
        budget_of(tmp_path, "", key={"routes": [pattern]}, routes=routes)
    assert budget_of(tmp_path, "", key={"routes": ["open"]}, routes=routes)


def test_e4_an_unknown_price_is_assumed_for_tokens_of_every_kind(tmp_path):
    config = budget_of(tmp_path, "p: {m: {input: 1, output: 1}}", unknown_price=5)
    unknown = config.price_list.unknown
    assert unknown is not None
    assert unknown.cost({"input": 1, "output": 1, "cache_read": 1, "reasoning": 1}) == Decimal("0.00002")
