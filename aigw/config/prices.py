"""The file of prices: what a provider charges for a model, by the kind of tokens, in USD per million tokens.

The arithmetic is decimal, so a cost is exact. Nothing in the file is a key.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from decimal import Context, Decimal
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Annotated

import msgspec

from aigw.config.reader import Reader
from aigw.config.yaml_tree import parse, read
from aigw.errors import ConfigError
from aigw.settings.limit_values import matches
from aigw.settings.mistakes import Mistake, name_of, worded
from aigw.settings.quoting import quoted
from aigw.settings.schema import Shape, Written, shape_of
from aigw.settings.values import NAME

if TYPE_CHECKING:
    from aigw.config.model import Config, Route, Step

MAX_FILE = 4 * 1024 * 1024
MAX_PRICE = 1_000_000
MOST_MISTAKES = 20
LEAST = Decimal("0.001")  # a price below it is most likely one of a single token
ANY = "*"  # in place of a model: each model of the provider that has no entry
SMALLEST = Decimal("1e-12")  # USD; a cost has no smaller part
EXACT = Context(prec=60)  # for sums of amounts
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,12})?(?:[eE][-+]?\d{1,2})?")


def _price(value: object) -> Decimal:
    is_huge = isinstance(value, int) and value > MAX_PRICE  # Python prints no number of more than 4,300 digits
    written = "" if isinstance(value, bool) or is_huge else str(value).strip()
    if isinstance(value, int | float | str) and _NUMBER.fullmatch(written):
        price = Decimal(written)
        if 0 <= price <= MAX_PRICE:
            return price
    raise ValueError("is not a price; write USD per million tokens, such as 0.15, from 0 to 1000000")


def _per_token(value: object) -> str | None:
    if not 0 < _price(value) < LEAST:
        return None
    return "is very little for a million tokens; multiply a price for one token by 1000000"


PricePerMillion = Annotated[Decimal, Written(_price, advice=_per_token)]
"""USD per million tokens: 0 or more."""


class Price(msgspec.Struct, frozen=True):
    """What one model costs, in USD per million tokens of each kind.

    Tokens that were read from a cache or written to it cost as much as ``input``, and tokens of reasoning as much as
    ``output``, unless they have a price of their own.
    """

    input: PricePerMillion
    output: PricePerMillion | None = None
    cache_read: PricePerMillion | None = None
    cache_write: PricePerMillion | None = None
    reasoning: PricePerMillion | None = None

    @property
    def is_free(self) -> bool:
        """Whether tokens of every kind cost nothing."""
        return self.output == 0 and not any((self.input, self.cache_read, self.cache_write, self.reasoning))

    def cost(self, tokens: Mapping[str, int]) -> Decimal | None:
        """The cost in USD of disjoint kinds of tokens; None if there are tokens of a kind without a price."""
        total = Decimal(0)
        for kind, count in tokens.items():
            price = getattr(self, kind)
            if price is None:
                price = self.output if kind in _OF_OUTPUT else self.input
            if price is not None:
                total = EXACT.add(total, EXACT.multiply(price, Decimal(count)))
            elif count:
                return None
        return in_usd(total.scaleb(-6, EXACT))


_OF_OUTPUT = ("output", "reasoning")


def in_usd(amount: Decimal) -> Decimal:
    """An amount without parts that are smaller than SMALLEST, so that a sum of many is exact everywhere."""
    return amount.quantize(SMALLEST, context=EXACT).normalize(EXACT)


class Prices(msgspec.Struct, frozen=True):
    """All prices, by provider and model. ``unknown`` is assumed for tokens of a model that has none."""

    models: Mapping[str, Mapping[str, Price]] = {}
    unknown: Price | None = None

    def of(self, provider: str, model: str) -> Price | None:
        """The price of a model; None if it has none."""
        known = self.models.get(provider)
        return None if known is None else known.get(model) or known.get(ANY)


NO_PRICES = Prices()


def with_unknown(prices: Prices, price: Decimal | None) -> Prices:
    """The prices, with ``price`` for tokens of every kind of the models that have none."""
    return prices if price is None else Prices(prices.models, Price(price, price))


def load_prices(path: str, shown: str = "") -> tuple[Prices, list[str]]:
    """The prices in the file ``path``, which messages call ``shown``, and warnings. Raises ConfigError."""
    shown = shown or path
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ConfigError([f"{shown}: this is not a regular file; name a file with prices"])
    except OSError as error:
        raise ConfigError([f"{shown}: cannot be read: {error.strerror}"]) from None
    text, _ = read(FilePath(path), shown, MAX_FILE, "in prices", "keep the models that are used")
    return parse_prices(text, shown)


def prices_of(tree: object, folder: FilePath) -> tuple[Prices, list[str], list[str]]:
    """The prices in the file that the tree names, with mistakes and warnings; none where it names no file."""
    named = tree.get("prices") if isinstance(tree, dict) else None
    if not isinstance(named, str) or not named.strip() or "\0" in named:  # which the reader reports
        return NO_PRICES, [], []
    try:
        prices, warnings = load_prices(str(folder / named))
    except ConfigError as error:
        return NO_PRICES, error.mistakes, []
    return prices, [], warnings


def parse_prices(text: str, file: str) -> tuple[Prices, list[str]]:
    """See load_prices, for the text of the file."""
    document = parse(text)
    mistakes = [*document.mistakes]
    warnings: list[Mistake] = []
    models: dict[str, dict[str, Price]] = {}
    if isinstance(document.tree, dict):
        for provider, listed in document.tree.items():
            found = _models(provider, listed, mistakes, warnings)
            if isinstance(provider, str):
                models[provider] = found
    elif document.tree is not None:
        mistakes.append(Mistake("expected a mapping of providers to their models", ()))
    if mistakes:
        raise ConfigError(worded(mistakes, file, document.root))
    return Prices(models), worded(warnings, file, document.root)


def _models(provider: object, listed: object, mistakes: list[Mistake], warnings: list[Mistake]) -> dict[str, Price]:
    here = (name_of(provider),)
    found: dict[str, Price] = {}
    if not _is_name(provider):
        mistakes.append(Mistake("is not the name of a provider; write a string", here))
    if not isinstance(listed, dict) or not listed:
        text = "expected a mapping of models to their prices; write MODEL: {input: 0.15, output: 0.6}"
        mistakes.append(Mistake(text, here))
        return found
    for model, prices in listed.items():
        path = (*here, name_of(model))
        if not _is_name(model):
            mistakes.append(Mistake("is not the name of a model; write a string, in quotes if it is a number", path))
        reader = Reader(_SHAPE, FilePath())
        price = reader.read(prices)
        mistakes += [Mistake(each.text, (*path, *(each.path or ()))) for each in reader.mistakes]
        warnings += [Mistake(each.text, (*path, *(each.path or ()))) for each in reader.warnings]
        if price is not None and isinstance(model, str):
            found[model] = price
    return found


def _is_name(value: object) -> bool:
    try:
        NAME.decode(value)
    except ValueError:
        return False
    return True


_SHAPE: Shape = shape_of(Price)


def unknown_providers(prices: Prices, providers: Iterable[str], file: str) -> Iterator[str]:
    """A warning for each provider of the file of prices that the configuration does not have."""
    known = set(providers)
    for name in prices.models:
        if name not in known:
            yield f"{file}: no provider is named {quoted(name)!r}, so its prices have no effect"


def unpriced_budgets(config: Config) -> Iterator[str]:
    """A mistake for each route with a step without a price that a caller with a budget in USD may use."""
    if config.price_list.unknown is not None:
        return
    found: dict[str, None] = {}
    lacking = {
        name: missing[0]
        for name, route in config.routes.items()
        if (missing := unpriced(route.steps, config.price_list))
    }
    patterns: dict[tuple[str, ...], None] = {}
    for caller in config.callers if lacking else ():
        if any(budget.in_usd for account in caller.accounts for budget in account.budgets):
            patterns[caller.routes] = None
    for each in patterns:
        for name, first in lacking.items():
            if may_use(each, config.routes[name]):
                step = f"{quoted(first.provider.name)} {quoted(first.model)}"
                found[f"step {first.number} of the route {quoted(name)!r} ({step}) has no price"] = None
    for text in list(found)[:MOST_MISTAKES]:
        yield f"{text}, and a key with a budget in USD may use it; add the price to prices, or write unknown_price"


def may_use(patterns: tuple[str, ...], route: Route) -> bool:
    """Whether a caller may use a route, by one of its names or by some of those that a star in a name stands for."""
    if not patterns:
        return True
    names = (route.name, *route.also)
    beginnings = tuple([name[:-1] for name in names if name.endswith(ANY)])
    return any(matches(patterns, name) or name in patterns for name in names) or any(
        each.startswith(beginnings) for each in patterns
    )


def unpriced(steps: Iterable[Step], prices: Prices) -> list[Step]:
    """The steps whose provider and model have no price."""
    return [step for step in steps if prices.of(step.provider.name, step.model) is None]
