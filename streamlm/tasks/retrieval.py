"""Retrieval: what can still be found in a text that was read, by what is kept of it."""

from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np

from streamlm.config import Compute
from streamlm.measure.open_model import open_model
from streamlm.records.files import hash_ids
from streamlm.records.paper import RetrievalRecord
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig
from streamlm.tasks.asked import hash_texts, text_of, tokenise_pieces
from streamlm.tasks.methods import PROTOCOL, ComparedCaches, answer_all, describe_answers
from streamlm.tasks.retrieval_text import TASKS, RetrievalText, write_texts

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
    texts = [tokenise_pieces(pieces, tokenizer) for _, pieces in written]
    answered, refused = answer_all(opened, texts, kept)
    of_task = {name: [i for i, (of, _) in enumerate(written) if of == name] for name in TASKS}
    lengths = {name: [len(texts[i].ids) for i in indices] for name, indices in of_task.items()}
    record: RetrievalRecord = {
        **opened.describe(  # type: ignore[typeddict-item]
            __file__, f"texts from seeds, with stretches of {dataset}", PROTOCOL, bootstrap
        ),
        "task": {**asdict(cfg), "seed": bootstrap.seed},
        "texts_sha256": hash_texts(pieces for _, pieces in written),
        "examples": {name: text_of(written[indices[0]][1]) for name, indices in of_task.items()},
        "rows": [
            {
                **of.case,
                "tasks": [
                    {
                        "task": name,
                        "tokens": max(lengths[name]),
                        **describe_answers([*chain(*(of.answers[i] for i in indices))], bootstrap.confidence),
                    }
                    for name, indices in of_task.items()
                ],
            }
            for of in answered
        ],
        "refused": refused,
        "tokens": {
            "count": sum(len(text.ids) for text in texts),
            "sha256": hash_ids(np.concatenate([text.ids for text in texts])),
        },
    }
    return record
