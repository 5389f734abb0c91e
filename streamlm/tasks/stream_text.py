"""The stream of StreamEval: lines of information, and now and then a question about an earlier line."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from streamlm.tasks.asked import Piece

WORDS = """
river stone garden window forest bridge harbor candle meadow island mirror tower valley wagon
lantern basket cabin desert engine feather tiger apple silver orange castle doctor market singer
pilot rabbit hammer kitchen school winter summer copper pencil bottle button carpet dragon eagle
farmer guitar hotel jacket king ladder monkey needle ocean palace queen rocket saddle temple uncle
violin whale yellow zebra anchor barrel circle donkey elbow finger goblet helmet insect jungle
kettle lemon magnet napkin oyster parrot quiver ribbon salmon tunnel turtle velvet walnut barn cloud
drum flute grape horse ivory jewel knife lamp moon nest onion pearl quilt rose shell train urn vase
wheel yarn arrow bell coin door egg fish goat hat ink jar kite leaf map nut oven pipe ring ship tree
vine well
""".split()  # noqa: SIM905
NUMBERS = 10_000  # values are from 0000 to 9999


@dataclass(frozen=True, kw_only=True)
class StreamText:
    """What a stream contains.

    Raises:
        ValueError: if there are more lines than words, or too few for a distance or for the candidates.
    """

    lines: int
    every: int  # lines from one question to the next
    distances: list[int]  # lines that a question goes back: 1 is the line before it
    streams: int  # of each distance, from seeds
    candidates: int  # values among which an answer is chosen: its own, and others of the stream

    def __post_init__(self) -> None:
        if self.lines > len(WORDS):
            raise ValueError(f"lines must be at most {len(WORDS)}, one for each word, got {self.lines}")
        last, needed = self.lines // self.every * self.every, max(self.candidates, *self.distances)
        if last < needed:
            raise ValueError(
                f"the last question is after line {last}, and its distances and candidates take {needed}; "
                "take more lines"
            )


def write_stream(cfg: StreamText, distance: int, seed: int) -> list[Piece]:
    r"""Return the pieces of a stream.

    A line of information is ``river: 4821\n``. A question has the form of one: after every `every` lines the
    word of an earlier line comes again, and its value is to follow.

    Args:
        cfg: what the stream contains.
        distance: lines that its questions go back.
        seed: of words and values; with those of one seed, streams of all distances have the same lines.

    Source: arXiv:2309.17453, section 4.4 (StreamEval), whose questions are asked every ten lines as well.
    """
    rng = np.random.default_rng(seed)
    words = rng.permutation(WORDS)[: cfg.lines].tolist()
    values = [f" {value:04d}" for value in rng.permutation(NUMBERS)[: cfg.lines]]
    pieces, text = [], ""
    for i in range(cfg.lines):
        text += f"{words[i]}:{values[i]}\n"
        asked = i + 1 - distance
        if (i + 1) % cfg.every == 0 and asked >= 0:
            others = [value for j, value in enumerate(values[: i + 1]) if j != asked]
            if len(others) >= cfg.candidates - 1:
                drawn = rng.permutation(others)[: cfg.candidates - 1].tolist()
                pieces.append(Piece(text, f"{words[asked]}:", (values[asked], *drawn)))
                text = "\n"
    return [*pieces, Piece(text)]


def all_streams(cfg: StreamText, seed: int) -> Iterator[tuple[int, int]]:
    """Yield the distance and the seed of every stream."""
    for distance in cfg.distances:
        yield from ((distance, seed + number) for number in range(cfg.streams))
