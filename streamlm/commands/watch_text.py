"""What `watch` shows at a terminal: a text in three looks, and where attention goes in numbers and bars.

Every text is escaped here, since rich writes past the filter of the terminal.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from streamlm.characters import without_steering
from streamlm.config import StreamConfig

if TYPE_CHECKING:
    from streamlm.generate.watching import WatchedToken

SINK, WINDOW, FORGOTTEN, MUCH = "bold reverse", "", "dim strike", "underline"
MUCH_SHARE = 0.05  # of the attention: a token of the window that gets as much is underlined
BAR_CELLS = 40  # of a bar that stands for all of the attention
OLD_TOKENS = 100  # forgotten ones that are shown of a conversation


def picture(token: "WatchedToken", texts: Sequence[str], cfg: StreamConfig, width: int, height: int) -> Text:
    """Return the text so far in three looks, its last rows, above numbers, bars and what the looks mean.

    Args:
        token: the newest.
        texts: of all tokens, by position.
        cfg: what the cache keeps.
        width: columns of the terminal.
        height: rows of the terminal; one stays free.
    """
    console = Console(width=width)
    below = Text("\n").join([Text(summary(token, texts, cfg)), bars(token, cfg), legend()])
    rows = below.wrap(console, width)
    shown = styled(token, texts, cfg, range(token.position + 1)).wrap(console, width)
    return Text("\n").join([*shown[-max(1, height - 1 - len(rows)) :], *rows])


def paragraphs(token: "WatchedToken", texts: Sequence[str], cfg: StreamConfig) -> Text:
    """Return sinks, the last forgotten tokens and the window, each by its name, above numbers and bars."""
    n_sinks, n_tokens = int((token.kept < cfg.n_sink).sum()), token.position + 1
    window = n_tokens if n_sinks == len(token.kept) else int(token.kept[n_sinks])
    shown = Text()
    for name, first, last in (
        ("sinks", 0, n_sinks),
        ("forgotten", n_sinks, window),
        ("window", window, n_tokens),
    ):
        begin = max(first, last - OLD_TOKENS) if name == "forgotten" else first
        shown.append(f"{name}, {last - first:,} tokens: {'...' if begin > first else ''}")
        shown.append(styled(token, texts, cfg, range(begin, last))).append("\n")
    return shown.append(summary(token, texts, cfg)).append("\n").append(bars(token, cfg))


def styled(token: "WatchedToken", texts: Sequence[str], cfg: StreamConfig, positions: Iterable[int]) -> Text:
    """Return the tokens at some positions, each in its look."""
    shares, shown = dict(zip(token.kept.tolist(), token.shares.tolist(), strict=True)), Text()
    for i in positions:
        style = FORGOTTEN
        if i in shares:
            style = SINK if i < cfg.n_sink else MUCH if shares[i] >= MUCH_SHARE else WINDOW
        shown.append(without_steering(texts[i]).expandtabs(4), style)
    return shown


def legend() -> Text:
    """Return what the looks mean."""
    much = f"{100 * MUCH_SHARE:g} % of the attention or more"
    return Text.assemble(("sink", SINK), " window ", ("forgotten", FORGOTTEN), " ", (much, MUCH))


def bars(token: "WatchedToken", cfg: StreamConfig) -> Text:
    """Return a row with a bar for the attention on the sinks, on the window and, if any, on no token."""
    names = ("sinks", "window", "no token")
    rows = [
        f"{name:<8} {100 * share:5.1f} % {'█' * round(BAR_CELLS * share)}"
        for name, share in zip(names, token.totals(cfg), strict=True)
        if name != "no token" or _is_shown(share)
    ]
    return Text("\n".join(rows))


def summary(token: "WatchedToken", texts: Sequence[str], cfg: StreamConfig) -> str:
    """Return in a line where the attention of a token goes."""
    sinks, window, nowhere = token.totals(cfg)
    n_sinks, best = int((token.kept < cfg.n_sink).sum()), int(token.shares.argmax())
    rest = f", {100 * nowhere:.1f} % on no token" if _is_shown(nowhere) else ""
    return (
        f"token {token.position}: {100 * sinks:.1f} % of its attention on {_count(n_sinks, 'sink')}, "
        f"{100 * window:.1f} % on {_count(len(token.kept) - n_sinks, 'token')} of the window{rest}; most on "
        f"{_quoted(texts[token.kept[best]])} (token {token.kept[best]}): {100 * token.shares[best]:.1f} %"
    )


def _is_shown(nowhere: float) -> bool:
    return nowhere >= 0.0005  # learned sinks; less is rounding


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


def _quoted(text: str) -> str:
    """Return a token on one line: its spaces can be seen."""
    return f'"{without_steering(text)}"'.replace("\n", "\\n").replace("\t", "\\t")
