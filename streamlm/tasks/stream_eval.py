"""StreamEval: what a stream can still be asked, by the distance of the answer and by what is kept."""

from dataclasses import asdict
from itertools import chain
from pathlib import Path

from streamlm.config import Compute
from streamlm.measure.open_model import open_model
from streamlm.records.paper import StreamEvalRecord
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig
from streamlm.tasks.asked import text_of
from streamlm.tasks.methods import PROTOCOL, ComparedCaches, ask_all, tokens_back
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
    written = [
        (distance, write_stream(cfg, distance, of)) for distance, of in all_streams(cfg, bootstrap.seed)
    ]
    record: StreamEvalRecord = {
        **opened.describe(  # type: ignore[typeddict-item]
            __file__, "StreamEval, lines of words and numbers from seeds", PROTOCOL, bootstrap
        ),
        "task": {**asdict(cfg), "seed": bootstrap.seed},
        "example": text_of(write_stream(cfg, min(cfg.distances), bootstrap.seed)),
        **ask_all(
            opened,
            read_tokenizer(Path(model_dir)),
            written,
            kept,
            bootstrap.confidence,
            key="distances",
            describe=lambda distance, texts: {
                "distance": distance,
                "tokens_back": max(chain(*map(tokens_back, texts))),
            },
        ),
    }
    return record
