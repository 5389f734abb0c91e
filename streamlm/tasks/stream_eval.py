"""StreamEval: what a stream can still be asked, by the distance of the answer and by what is kept."""

from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np

from streamlm.config import Compute
from streamlm.measure.open_model import open_model
from streamlm.records.files import hash_ids
from streamlm.records.paper import StreamEvalRecord
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig
from streamlm.tasks.asked import hash_texts, text_of, tokenise_pieces
from streamlm.tasks.methods import PROTOCOL, ComparedCaches, answer_all, describe_answers, tokens_back
from streamlm.tasks.stream_text import StreamText, all_streams, write_stream


def measure_stream_eval(
    *,
    model_dir: Path | str,
    title: str | None,
    cfg: StreamText,
    kept: ComparedCaches,
    compute: Compute,
    bootstrap: BootstrapConfig,
) -> StreamEvalRecord:
    """Ask a model about earlier lines of a stream, under every method and press, at every capacity.

    Args:
        model_dir: a transformers model folder.
        title: true name of the model, if its folder does not say it.
        cfg: what the streams contain.
        kept: of them.
        compute: number type, device and threads.
        bootstrap: its seed draws the streams; its confidence is that of the intervals.

    Raises:
        ValueError: for any mistake in the above.

    Source: arXiv:2309.17453, section 4.4, figures 8 and 9, appendix C.
    """
    opened = open_model(model_dir, compute, title=title, prepared=False)
    tokenizer = read_tokenizer(Path(model_dir))
    written = [
        (distance, write_stream(cfg, distance, of)) for distance, of in all_streams(cfg, bootstrap.seed)
    ]
    texts = [tokenise_pieces(pieces, tokenizer) for _, pieces in written]
    streams = {
        distance: [i for i, (of, _) in enumerate(written) if of == distance] for distance in cfg.distances
    }
    answered, refused = answer_all(opened, texts, kept)
    record: StreamEvalRecord = {
        **opened.describe(  # type: ignore[typeddict-item]
            __file__, "StreamEval, lines of words and numbers from seeds", PROTOCOL, bootstrap
        ),
        "task": {**asdict(cfg), "seed": bootstrap.seed},
        "texts_sha256": hash_texts(pieces for _, pieces in written),
        "example": text_of(write_stream(cfg, min(cfg.distances), bootstrap.seed)),
        "rows": [
            {
                **of.case,
                "distances": [
                    {
                        "distance": distance,
                        "tokens_back": max(chain(*(tokens_back(texts[i]) for i in indices))),
                        **describe_answers([*chain(*(of.answers[i] for i in indices))], bootstrap.confidence),
                    }
                    for distance, indices in streams.items()
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
