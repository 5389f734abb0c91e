"""Texts with questions in them: as pieces, as tokens, and their hash."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Piece(NamedTuple):
    """What is read, a question after it, and what may answer it; the last piece of a text asks nothing."""

    text: str
    asked: str = ""
    values: tuple[str, ...] = ()  # the right one first, which follows in the text


class Question(NamedTuple):
    """One question in a stream of tokens."""

    begin: int  # index of its first token
    start: int  # index of the first token of its answer
    candidates: list[list[int]]  # token ids of the values to choose from; the answer comes first


class AskedText(NamedTuple):
    """A stream of tokens with its questions."""

    ids: np.ndarray  # (N,) int64
    questions: list[Question]  # in the order of the stream


def text_of(pieces: Sequence[Piece]) -> str:
    """Return the whole text."""
    return "".join("".join((piece.text, piece.asked, *piece.values[:1])) for piece in pieces)


def hash_texts(texts: Iterable[Sequence[Piece]]) -> str:
    """Return the SHA-256 of texts, each ended by a zero byte."""
    return hashlib.sha256("".join(f"{text_of(pieces)}\0" for pieces in texts).encode()).hexdigest()


def tokenise_pieces(pieces: Sequence[Piece], tokenizer: Any) -> AskedText:
    """Return the tokens of a text and its questions.

    Texts, questions and values are tokenised one by one: a value is the same tokens as an answer and among
    the candidates.

    Raises:
        ValueError: if two values of a question are the same tokens, or a question has none.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    ids: list[int] = []
    questions = []
    for text, asked, values in pieces:
        ids += encode(text)
        begin = len(ids)
        ids += encode(asked)
        candidates = [encode(value) for value in values]
        if len({*map(tuple, candidates)}) < len(candidates):
            raise ValueError("the tokenizer makes the same tokens of different values")
        if candidates:
            if begin == len(ids):
                raise ValueError("the tokenizer makes no token of a question")
            questions.append(Question(begin, len(ids), candidates))
            ids += candidates[0]
    return AskedText(np.array(ids, np.int64), questions)
