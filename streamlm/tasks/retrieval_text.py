"""Texts that hide what is asked for later: needles in noise and in prose, chains of names, counts, turns.

In the manner of RULER (arXiv:2404.06654), small enough for a model of 135 million weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamlm.tasks.asked import Piece
from streamlm.tasks.stream_text import NUMBERS, WORDS

NOISE = (
    "Rain falls on the hills.",
    "A cat sleeps in the yard.",
    "The road goes on and on.",
    "Somebody opens a door.",
    "It is a quiet day.",
)
QUESTIONS = 5  # of the task with several
HOPS = 2  # names between a name and its number
TIMES_AS_OFTEN = 3  # as any other comes the most common word
TURN = "User: Is {word} a word?\nAssistant: Yes, {word} is a word.\n"
TURN_WORDS = len(TURN.split())
SENTENCE_WORDS = 12  # of prose, in which a needle is put between any two of so many words


@dataclass(frozen=True, kw_only=True)
class RetrievalText:
    """What a text contains.

    Raises:
        ValueError: if there are more candidates than words for them, or more words than there are turns for.
    """

    words: int  # about, of what hides the needles
    samples: int  # texts of each task
    candidates: int  # values among which an answer is chosen; needles, where there are several

    def __post_init__(self) -> None:
        longest = TURN_WORDS * (len(WORDS) - 1)
        if self.words > longest:
            raise ValueError(f"words must be at most {longest:,}, got {self.words:,}; take fewer")
        most = len(WORDS) // (1 + HOPS)
        if not QUESTIONS <= self.candidates <= most:
            raise ValueError(
                f"candidates must be from {QUESTIONS} to {most}, got {self.candidates}; take one of these"
            )


Writer = Callable[[RetrievalText, np.random.Generator, Sequence[str]], list[Piece]]


def _drawn(cfg: RetrievalText, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Return words, all of them, and values, as many as there are candidates."""
    values = [f" {value:04d}" for value in rng.permutation(NUMBERS)[: cfg.candidates]]
    return rng.permutation(WORDS).tolist(), values


def _hide(rng: np.random.Generator, lines: Sequence[str], among: Sequence[str]) -> str:
    """Return a text with lines in their order at random places among others."""
    positions = np.sort(rng.integers(len(among) + 1, size=len(lines)))
    parts = list(among)
    for position, line in reversed(list(zip(positions, lines, strict=True))):
        parts.insert(int(position), line)
    return " ".join(parts)


def _noise(cfg: RetrievalText) -> list[str]:
    per_round = sum(len(sentence.split()) for sentence in NOISE)
    return [*NOISE] * max(1, cfg.words // per_round)


def _sentence(word: str, value: str) -> str:
    return f"The number of the {word} is{value}."


def _ask(word: str) -> str:
    return f"The number of the {word} is"


def needle(cfg: RetrievalText, rng: np.random.Generator, prose: Sequence[str]) -> list[Piece]:
    """One number in noise."""
    words, values = _drawn(cfg, rng)
    text = _hide(rng, [_sentence(words[0], values[0])], _noise(cfg))
    return [Piece(f"{text}\n", _ask(words[0]), tuple(values)), Piece(".\n")]


def needle_in_prose(cfg: RetrievalText, rng: np.random.Generator, prose: Sequence[str]) -> list[Piece]:
    """One number in a stretch of a real text."""
    words, values = _drawn(cfg, rng)
    first = int(rng.integers(max(1, len(prose) - cfg.words)))
    stretch = prose[first : first + cfg.words]
    sentences = [" ".join(stretch[i : i + SENTENCE_WORDS]) for i in range(0, len(stretch), SENTENCE_WORDS)]
    text = _hide(rng, [_sentence(words[0], values[0])], sentences)
    return [Piece(f"{text}\n", _ask(words[0]), tuple(values)), Piece(".\n")]


def several_needles(cfg: RetrievalText, rng: np.random.Generator, prose: Sequence[str]) -> list[Piece]:
    """One of several numbers in noise, among the others."""
    return _several(cfg, rng, 1)


def several_questions(cfg: RetrievalText, rng: np.random.Generator, prose: Sequence[str]) -> list[Piece]:
    """Five questions, one after the other, about several numbers in noise."""
    return _several(cfg, rng, QUESTIONS)


def _several(cfg: RetrievalText, rng: np.random.Generator, n_questions: int) -> list[Piece]:
    words, values = _drawn(cfg, rng)
    lines = [_sentence(word, value) for word, value in zip(words, values, strict=False)]
    text = _hide(rng, lines, _noise(cfg))
    pieces = []
    for i in rng.permutation(len(values))[:n_questions].tolist():
        others = [value for j, value in enumerate(values) if j != i]
        pieces.append(Piece(f"{text}\n", _ask(words[i]), (values[i], *others)))
        text = "."
    return [*pieces, Piece(".\n")]


def variables(cfg: RetrievalText, rng: np.random.Generator, prose: Sequence[str]) -> list[Piece]:
    """A number that is known by other names, among several such chains."""
    words, values = _drawn(cfg, rng)
    chains = [words[i :: len(values)][: 1 + HOPS] for i in range(len(values))]
    lines = [_sentence(chain[0], value) for chain, value in zip(chains, values, strict=True)]
    for hop in range(HOPS):
        lines += [f"The {chain[hop + 1]} has the number of the {chain[hop]}." for chain in chains]
    text = _hide(rng, lines, _noise(cfg))
    asked = int(rng.integers(len(values)))
    others = [value for i, value in enumerate(values) if i != asked]
    return [Piece(f"{text}\n", _ask(chains[asked][-1]), (values[asked], *others)), Piece(".\n")]


def common_word(cfg: RetrievalText, rng: np.random.Generator, prose: Sequence[str]) -> list[Piece]:
    """The word that comes most often in a list."""
    words = rng.permutation(WORDS)[: cfg.candidates].tolist()
    seldom = max(1, 2 * cfg.words // (3 * (len(words) - 1 + TIMES_AS_OFTEN)))  # of more tokens than noise
    counts = [TIMES_AS_OFTEN * seldom] + [seldom] * (len(words) - 1)
    listed = rng.permutation([word for word, count in zip(words, counts, strict=True) for _ in range(count)])
    text, values = "\n".join([*listed, "", ""]), tuple(f" {word}" for word in words)
    return [Piece(text, "The most common word is", values), Piece(".\n")]


def first_instruction(cfg: RetrievalText, rng: np.random.Generator, prose: Sequence[str]) -> list[Piece]:
    """A number that was said before all turns of a conversation."""
    words, values = _drawn(cfg, rng)
    turns = "".join(TURN.format(word=word) for word in words[1 : 1 + cfg.words // TURN_WORDS])
    question = f"User: What is the number of the {words[0]}?\n"
    text = f"System: {_sentence(words[0], values[0])}\n{turns}{question}"
    return [Piece(text, f"Assistant: {_ask(words[0])}", tuple(values)), Piece(".\n")]


TASKS: dict[str, Writer] = {
    "needle in noise": needle,
    "needle in a real text": needle_in_prose,
    "one of several needles": several_needles,
    "five questions on several needles": several_questions,
    "chains of names": variables,
    "most common word": common_word,
    "first instruction, after many turns": first_instruction,
}


def write_texts(cfg: RetrievalText, prose: Sequence[str], seed: int) -> Iterator[tuple[str, list[Piece]]]:
    """Yield the name of a task and a text of it, from a seed and stretches of prose, a list of words."""
    for name, write in TASKS.items():
        for number in range(cfg.samples):
            yield name, write(cfg, np.random.default_rng(seed + number), prose)
