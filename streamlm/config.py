"""Frozen settings: the geometry of the cache, and the methods, which differ in nothing else."""

from dataclasses import dataclass

METHODS = ("dense", "window", "recompute", "streaming")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Geometry of the streaming cache, in tokens.

    Raises:
        ValueError: if `n_sink` is negative or `window_size` is below 1.
    """

    n_sink: int  # first tokens, never evicted
    window_size: int  # most recent tokens, the current one included

    def __post_init__(self) -> None:
        if self.n_sink < 0:
            raise ValueError(f"n_sink must be >= 0, got {self.n_sink}; use 0 for a plain sliding window")
        if self.window_size < 1:
            raise ValueError(
                f"window_size must be >= 1, got {self.window_size}; the window counts the current token"
            )

    @property
    def capacity(self) -> int:
        """Tokens held once the cache is full."""
        return self.n_sink + self.window_size

    def within(self, n_tokens: int) -> "StreamConfig":
        """Return the smallest geometry that means the same for a stream of `n_tokens`."""
        n_sink = min(self.n_sink, n_tokens - 1)
        return StreamConfig(n_sink=n_sink, window_size=min(self.window_size, n_tokens - n_sink))


def method_geometry(method: str, n_sink: int, window_size: int, n_tokens: int) -> StreamConfig:
    """Return the cache geometry of a method at equal memory, for a stream of `n_tokens`.

    ``streaming`` is n_sink + window_size; ``window`` and ``recompute`` have the same capacity and no sinks;
    ``dense`` keeps everything.

    Raises:
        ValueError: if the method is unknown or a size is out of range.
    """
    cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
    if method == "streaming":
        return cfg
    if method in ("window", "recompute"):
        return StreamConfig(n_sink=0, window_size=cfg.capacity)
    if method == "dense":
        return StreamConfig(n_sink=0, window_size=max(n_tokens, 1))
    raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
