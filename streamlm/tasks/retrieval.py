"""Retrieval: what can still be found in a text that was read, by what is kept of it."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from streamlm.config import Compute
from streamlm.measure.open_model import open_model
from streamlm.records.paper import RetrievalRecord
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig
from streamlm.tasks.asked import text_of
from streamlm.tasks.methods import PROTOCOL, ComparedCaches, ask_all
from streamlm.tasks.retrieval_text import RetrievalText, write_texts

PROSE_TOKENS = 50_000  # of a corpus, from which stretches are taken


def measure_retrieval(
    *,
    model_dir: Path | str,
    title: str | None,
    ids: np.ndarray,
    dataset: str,
    cfg: RetrievalText,
    kept: ComparedCaches,
    compute: Compute,
    bootstrap: BootstrapConfig,
) -> RetrievalRecord:
    """Ask a model for what texts hide, under every method and press, at every capacity.

    Args:
        model_dir: a transformers model folder.
        title: true name of the model, if its folder does not say it.
        ids: (N,) token ids of a real text, in which needles are hidden.
        dataset: its true name.
        cfg: what the texts contain.
        kept: of them.
        compute: number type, device and threads.
        bootstrap: its seed draws the texts; its confidence is that of the intervals.

    Raises:
        ValueError: for any mistake in the above.

    Source: in the manner of RULER, arXiv:2404.06654, section 3.
    """
    opened = open_model(model_dir, compute, title=title, prepared=False)
    tokenizer = read_tokenizer(Path(model_dir))
    prose = tokenizer.decode(ids[:PROSE_TOKENS]).split()
    written = list(write_texts(cfg, prose, bootstrap.seed))
    record: RetrievalRecord = {
        **opened.describe(  # type: ignore[typeddict-item]
            __file__, f"texts from seeds, with stretches of {dataset}", PROTOCOL, bootstrap
        ),
        "task": {**asdict(cfg), "seed": bootstrap.seed},
        "examples": {name: text_of(pieces) for name, pieces in reversed(written)},  # the first of each
        **ask_all(
            opened,
            tokenizer,
            written,
            kept,
            bootstrap.confidence,
            key="tasks",
            describe=lambda name, texts: {"task": name, "tokens": max(len(text.ids) for text in texts)},
        ),
    }
    return record
