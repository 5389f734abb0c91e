"""How far a long run is: a bar on a terminal, plain lines anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

EVERY_SEC = 10.0  # between two lines; what is over before the first stays silent
LINE = "{n_fmt} of {total_fmt} {unit}s, {rate_fmt}, {remaining} left{postfix}"


class _Lines(tqdm):  # type: ignore[type-arg]
    """A line now and then, for logs and pipes."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the state as a line; an empty `msg` would clear a bar, and here is none."""
        if msg is None:
            print(self, file=self.fp, flush=True)


@contextmanager
def progress(total: int, unit: str) -> Iterator[Any]:
    """Yield a tqdm bar: how many `unit` of `total`, the rate, the time left.

    A workflow puts a log file in the place of sys.stderr: the bar goes to the terminal itself if there is
    one, and lines go to the log if not.
    """
    if sys.__stderr__ is not None and sys.__stderr__.isatty():
        with tqdm(total=total, unit=unit, file=sys.__stderr__) as bar:
            yield bar
        return
    with _Lines(
        total=total, unit=unit, file=sys.stderr, bar_format=LINE, leave=False, miniters=1,
        mininterval=EVERY_SEC, delay=EVERY_SEC,
    ) as bar:  # fmt: skip
        yield bar
