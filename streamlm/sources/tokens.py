"""Token ids: the tokenizer of a model folder, and texts in pieces through it."""

import re
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from streamlm.cache.folder import explained_folder, tokenizer_files

PIECE = 1 << 16  # characters that are tokenised at once
MARGIN = 512  # characters around a cut that are tokenised with both pieces


def tokenise(
    texts: Iterable[str], tokenizer_dir: Path, *, add_bos: bool, max_tokens: int | None = None
) -> np.ndarray:
    """Return the token ids of texts joined without anything between, no more read than is needed.

    The only special token added is one BOS at the beginning, if `add_bos`. One that is written in a text,
    such as ``<|endoftext|>``, is that token.

    Args:
        texts: in order, of any lengths.
        tokenizer_dir: a transformers folder.
        add_bos: whether the tokenizer's BOS comes before the first token.
        max_tokens: ids to return at most; None returns all.

    Returns:
        (T,) int64 token ids, those of the joined texts in one call of the tokenizer.

    Raises:
        ValueError: the tokenizer is missing or has no BOS to add, or there are no tokens.
    """
    tokenizer = read_tokenizer(tokenizer_dir)
    bos = [tokenizer.bos_token_id] if add_bos else []
    if bos == [None]:
        raise ValueError(f"add_bos is true but the tokenizer in {tokenizer_dir} has no BOS; use false")
    if not add_bos and tokenizer.bos_token_id in tokenizer("")["input_ids"][:1]:
        warnings.warn(
            f"the tokenizer in {tokenizer_dir} begins a text with BOS, which is left out here; some models "
            "are lost without it: --add-bos, or add_bos in the config, adds it",
            stacklevel=3,
        )
    found, count = [np.array(bos, dtype=np.int64)], len(bos)
    for ids in token_pieces(tokenizer, texts):
        found.append(np.array(ids, dtype=np.int64))
        count += len(ids)
        if max_tokens is not None and count >= max_tokens:
            break
    if count == len(bos):
        raise ValueError("there are no tokens in the text; use more text")
    return np.concatenate(found)[:max_tokens]


def token_pieces(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the token ids of the joined texts, piece by piece.

    A cut is at white space after a word, where the tokenizer takes the two apart, so that what follows does
    not change the ids before it. A text without such a place is tokenised whole.
    """
    if not tokenizer.is_fast:  # it does not say which characters a token is of
        yield tokenizer("".join(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return
    separates = _separates_words(tokenizer)
    chunks = (text[i : i + PIECE] for text in texts for i in range(0, len(text), PIECE))
    text, done, size = "", 0, PIECE  # the ids before character `done` were given
    for chunk in chain(chunks, [None]):
        text += chunk or ""
        if chunk is not None and len(text) < size:
            continue
        encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
        starts = [start for start, _ in encoded["offset_mapping"]]
        cut = len(text) if chunk is None else _last_cut(text, encoded, starts, separates)
        if cut > done:
            yield encoded["input_ids"][bisect_left(starts, done) : bisect_left(starts, cut)]
            first = max(0, cut - MARGIN)
            text, done, size = text[first:], cut - first, cut - first + PIECE
        else:
            size = 2 * len(text)  # twice as much at every attempt


def _last_cut(text: str, encoded: Any, starts: Sequence[int], separates: bool) -> int:
    """Return the last character, well before the end, at which the text can be cut; 0 if there is none."""
    words = encoded.word_ids()
    spaces = [found.start() for found in _SPACE_AFTER_WORD.finditer(text, 0, max(0, len(text) - MARGIN))]
    for cut in reversed(spaces):
        after = bisect_left(starts, cut)
        if 0 < after < len(starts) and (separates or words[after - 1] != words[after]):
            return cut
    return 0


_SPACE_AFTER_WORD = re.compile(r"(?<=\S)\s")


def _separates_words(tokenizer: Any) -> bool:
    """Return whether no token of the vocabulary goes on from a word into white space."""
    model = tokenizer.backend_tokenizer
    vocabulary = model.get_vocab(with_added_tokens=False)
    return type(model.model).__name__ in ("BPE", "Unigram") and not any(
        re.search(r"[^\s\u2581\u0120\u010a][\s\u2581\u0120\u010a]", token) for token in vocabulary
    )


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in a model folder.

    Raises:
        ValueError: it is missing or unreadable.
    """
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer.json").is_file():
        raise ValueError(f"{folder} has no tokenizer.json; use a model folder with a tokenizer")
    with explained_folder(f"the tokenizer in {folder}"), tokenizer_files(Path(folder)) as place:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        tokenizer.name_or_path = str(folder)
        tokenizer.decode(tokenizer.encode(_TRIED))  # one that is damaged may fail at a character only
    return tokenizer


_TRIED = "".join(map(chr, range(32, 127))) + " \n\té\u0436\u4e2d\U0001f600"
