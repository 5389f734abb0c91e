"""Texts as the twins read them: bytes, the last of which are kept for scoring."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from streamlm.sources.corpus import join_documents, read_sample


def read_texts(samples: Sequence[Path | str], held_out: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return bytes to train on, of all texts together, and the last `held_out` of each text.

    Args:
        samples: files of `write_sample`.
        held_out: bytes at the end of each text, on which nothing is trained.

    Returns:
        (N,) uint8; and (held_out,) uint8 of each text.

    Raises:
        ValueError: if a sample is none, or has no more than twice as many bytes.
    """
    texts = []
    for path in samples:
        documents = read_sample(Path(path)).documents
        text = np.frombuffer("".join(join_documents(documents)).encode(), np.uint8)
        if len(text) <= 2 * held_out:
            raise ValueError(f"{path} has {len(text):,} bytes, too few to keep {held_out:,} of them apart")
        texts.append(text)
    return np.concatenate([text[:-held_out] for text in texts]), [text[-held_out:] for text in texts]
