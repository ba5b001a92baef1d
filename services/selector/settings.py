"""Settings of the selector, from the environment: `FULGURITE_SELECTOR_*`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from fulgurite.cost.prices import Prices, parse_prices
from fulgurite.errors import BadPrices
from fulgurite.selection.logged import Weights
from fulgurite.selection.rules import GuardRules, Objective, SelectionRules

_LEAST_SHARE = 0.001
"""Shares have four decimals. A share of 0 would take a variant from the rollouts that have it."""


class SelectorSettings(BaseSettings):
    """Settings of one selector. All its aliases share them."""

    model_config = SettingsConfigDict(
        env_prefix="FULGURITE_SELECTOR_", extra="ignore", use_attribute_docstrings=True
    )

    aliases: str = ""
    """Aliases, comma-separated, whose variants are selected. Each needs a route that names them."""
    mode: Literal["shadow", "proposal", "automatic"] = "shadow"
    """`shadow`: shares are recorded in `selection.decisions` only. `proposal`: they wait for
    `fulgurite select accept`. `automatic`: they are written to `policy.routes`."""
    objective: Literal["earn", "verdict"] = "earn"
    """`earn`: earn as much as possible while learning. `verdict`: find the best variant soon, then
    give it all but the floors and stop."""
    prices: Path | None = None
    """TOML file of prices (docs/how-to/cost.md)."""
    price_weight: float = Field(default=0.0, ge=0)
    """Reward that a unit of the price file's currency costs."""
    latency_weight: float = Field(default=0.0, ge=0)
    """Reward that a second in the alias's calls costs."""
    warmup: int = Field(default=30, ge=2)
    """Rewarded episodes that a variant needs before its rewards count. Until then it keeps the
    share that the route gave it."""
    every: int = Field(default=50, ge=1)
    """New episodes between two decisions. Guard rails do not wait."""
    floor: float = Field(default=0.05, ge=_LEAST_SHARE, le=0.5)
    """Least share of a variant in any context: the exploration."""
    half_life: float = Field(default=500.0, gt=0)
    """Later episodes of the same variant after which an episode counts half."""
    cell_episodes: int = Field(default=30, ge=2)
    """Rewarded episodes of every variant that a context needs for shares of its own."""
    cells: int = Field(default=16, ge=0)
    """At most so many contexts have shares of their own; 0: the context does not matter."""
    least_change: float = Field(default=0.02, ge=0, lt=1)
    """The route is left as it is while no share changes by more than this."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Confidence of a verdict, over the whole time of the comparison."""
    most_episodes: int = Field(default=5_000, ge=2)
    """Rewarded episodes after which a comparison ends without a winner."""
    guard_window: int = Field(default=20, ge=1)
    """Latest episodes of a variant that its guard rails count."""
    guard_error_rate: float = Field(default=0.25, ge=0, lt=1)
    """A variant loses its traffic if more than this part of the window failed."""
    guard_call_s: float = Field(default=0.0, ge=0)
    """A variant loses its traffic if in more than half of the window its calls took longer than
    this on average, in seconds; 0: no limit."""
    guard_share: float = Field(default=0.01, ge=_LEAST_SHARE, le=0.5)
    """What a variant keeps that lost its traffic, so that it is seen when it recovers and no
    episode changes its variant."""
    lookback_days: float = Field(default=7.0, gt=0)
    """Episodes older than this at the start are not read."""
    remembered: int = Field(default=20_000, ge=100)
    """Latest episodes of an alias that are kept in memory, about 2 KB each."""
    log_level: str = "INFO"
    """`DEBUG`, `INFO`, `WARNING` or `ERROR`."""

    def names(self) -> list[str]:
        """The aliases. Raises ValueError without any."""
        found = [name for name in (part.strip() for part in self.aliases.split(",")) if name]
        if not found:
            raise ValueError(
                "no alias is named: set FULGURITE_SELECTOR_ALIASES, or give --alias to "
                "`fulgurite select start`"
            )
        return list(dict.fromkeys(found))

    def read_prices(self) -> Prices | None:
        """The price file. Raises ValueError if prices count and none can be read."""
        if self.prices is None:
            if self.price_weight:
                raise ValueError(
                    "FULGURITE_SELECTOR_PRICE_WEIGHT needs prices: set FULGURITE_SELECTOR_PRICES "
                    "to a price file (docs/how-to/cost.md)"
                )
            return None
        try:
            return parse_prices(self.prices.read_text(encoding="utf-8"))
        except (BadPrices, OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"the price file {self.prices} cannot be read: {error}. docs/how-to/cost.md has an "
                "example"
            ) from error

    def rules(self) -> SelectionRules:
        """The rules of a decision."""
        return SelectionRules(
            objective=Objective(self.objective),
            weights=Weights(price=self.price_weight, latency=self.latency_weight),
            warmup=self.warmup,
            every=self.every,
            floor=self.floor,
            half_life=self.half_life,
            cell_episodes=self.cell_episodes,
            cells=self.cells,
            least_change=self.least_change,
            confidence=self.confidence,
            most_episodes=self.most_episodes,
            guard=GuardRules(
                window=self.guard_window,
                error_rate=self.guard_error_rate,
                call_seconds=self.guard_call_s,
                share=self.guard_share,
            ),
        )
