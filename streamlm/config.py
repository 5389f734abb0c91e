"""Frozen settings: the geometry of the cache, the methods, and what a measurement computes with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from streamlm.limits import TOKENS


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Geometry of the streaming cache, in tokens.

    Raises:
        ValueError: if `n_sink` is negative, `window_size` is below 1, or one of them is endless; if
            `positions` is another word.
    """

    n_sink: int  # first tokens, never evicted
    window_size: int  # most recent tokens, the current one included
    # How far a sink is from a query: as far as in the cache (arXiv:2309.17453, section 3.2), or in the text.
    positions: Literal["cache", "text"] = "cache"

    def __post_init__(self) -> None:
        if self.positions not in ("cache", "text"):
            raise ValueError(f'positions must be "cache" or "text", got {self.positions!r:.40}')
        if self.n_sink < 0:
            raise ValueError(f"n_sink must be >= 0, got {self.n_sink}; use 0 for a plain sliding window")
        if self.window_size < 1:
            raise ValueError(
                f"window_size must be >= 1, got {self.window_size}; the window counts the current token"
            )
        if max(self.n_sink, self.window_size) > TOKENS:
            raise ValueError(
                f"n_sink and window_size must be at most {TOKENS:,}, got {self.n_sink:,} and "
                f"{self.window_size:,}; a window as long as the text keeps all of it"
            )

    def __str__(self) -> str:
        return f"{self.n_sink}+{self.window_size}"

    @property
    def capacity(self) -> int:
        """Tokens held once the cache is full."""
        return self.n_sink + self.window_size

    def within(self, n_tokens: int) -> "StreamConfig":
        """Return the smallest geometry that means the same for a stream of `n_tokens`."""
        n_sink = min(self.n_sink, n_tokens - 1)
        return replace(self, n_sink=n_sink, window_size=min(self.window_size, n_tokens - n_sink))


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What a measurement computes with, by name: the section `compute` of a config."""

    dtype: str = "float32"  # a torch floating-point type
    device: str = "auto"  # a torch device; "auto" is CUDA when present, else the CPU
    torch_threads: int | str = "auto"  # of CPU arithmetic; "auto" is every core


SHARE_QUERIES = 128  # at the end of a context: the mean of their attention is its sink mass

# How the models of table 3 of arXiv:2309.17453 are trained, as it stands in tables.
TWINS = {"plain": "as usual", "zero_sink": "zero sink", "sink_token": "learnable sink token"}

# The texts of the packaged experiment, stored in data/, and the data sets on a hub that they stand in for.
ROLES = {"wikitext": ("Salesforce/wikitext", "wikitext-103-v1"), "pg19": ("emozilla/pg19", None)}

Geometry = Callable[[StreamConfig, int], StreamConfig]


def as_asked(cfg: StreamConfig, n_tokens: int) -> StreamConfig:
    """Return the geometry that was asked for."""
    return cfg


def at_text_positions(cfg: StreamConfig, n_tokens: int) -> StreamConfig:
    """Return the geometry that was asked for, with sinks as far from a query as they are in the text."""
    return replace(cfg, positions="text")


def without_sinks(cfg: StreamConfig, n_tokens: int) -> StreamConfig:
    """Return a plain window of equal capacity."""
    return StreamConfig(n_sink=0, window_size=cfg.capacity)


def everything(cfg: StreamConfig, n_tokens: int) -> StreamConfig:
    """Return a window as long as the text."""
    return StreamConfig(n_sink=0, window_size=max(n_tokens, 1))


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to treat the cache.

    Its losses are computed under its geometry, unless it has a function in `measure.scorers.SCORERS`.
    """

    name: str  # in configs, records and file names
    title: str  # in tables and figures
    geometry: Geometry  # (asked, tokens of the text) -> what is kept at equal memory
    cost: str  # of attention over T tokens with C entries kept; figure 1 of arXiv:2309.17453
    color: str
    marker: str
    linestyle: Any  # of matplotlib
    hatch: str
    is_timed: bool = False  # whether the workflow times its decoding; `measure.decoders.DECODERS` has how
    is_sampled: bool = False  # whether its losses are estimated from a sample of tokens
    is_compared: bool = True  # whether the main comparison of an experiment has it
    # (query positions, key positions, asked, tokens) -> which keys are drawn as seen; None: by the geometry
    sketch: Callable[[Any, Any, StreamConfig, int], Any] | None = None

    def kept(self, cfg: StreamConfig) -> str:
        """Return what it keeps of a geometry as it stands in tables: "all" or sinks + window."""
        return "all" if self.geometry is everything else str(cfg)


def _last_window(query: Any, key: Any, cfg: StreamConfig, n_tokens: int) -> Any:
    """Return the window that is computed from scratch for the last token."""
    return (key <= query) & (key >= n_tokens - cfg.capacity)


# In the order of tables and figures. Colours of Okabe and Ito, which colour-blind readers can tell apart.
METHODS = {
    method.name: method
    for method in (
        Method(
            name="dense", title="dense", geometry=everything, cost="O(T²)", is_timed=True,
            color="#777777", marker="D", linestyle="--", hatch="",
        ),
        Method(
            name="window", title="window only", geometry=without_sinks, cost="O(TC)", is_timed=True,
            color="#e69f00", marker="^", linestyle="-.", hatch="////",
        ),
        Method(
            name="recompute", title="window with re-computation", geometry=without_sinks, cost="O(TC²)",
            is_timed=True, is_sampled=True, sketch=_last_window, color="#009e73", marker="s",
            linestyle=(0, (1, 1)), hatch="xxxx",
        ),
        Method(
            name="streaming", title="streaming (sinks + window)", geometry=as_asked, cost="O(TC)",
            is_timed=True, color="#0072b2", marker="o", linestyle="-", hatch="....",
        ),
        Method(
            name="text_positions", title="sinks + window at positions in the text",
            geometry=at_text_positions, cost="O(TC)", is_compared=False, color="#d55e00", marker="v",
            linestyle="--", hatch="----",
        ),
    )
}  # fmt: skip


def find_method(name: str) -> Method:
    """Return the method of this name.

    Raises:
        ValueError: if there is none.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]
