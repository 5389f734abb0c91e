"""What the sinks have to be: the same stream with sinks of several kinds, at equal memory."""

from pathlib import Path
from typing import Any

import numpy as np

from streamlm.config import Compute, StreamConfig
from streamlm.measure.open_model import open_model
from streamlm.measure.scorers import BLOCKS
from streamlm.measure.scoring import score_stream
from streamlm.records.files import hash_ids
from streamlm.records.paper import SinkTokensRecord
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig, after_token, paired_increase

RANDOM_DRAWS = "ABC"


def measure_sink_tokens(
    *,
    model_dir: Path | str,
    title: str | None,
    ids: np.ndarray,
    dataset: str,
    cfg: StreamConfig,
    compute: Compute,
    bootstrap: BootstrapConfig,
) -> tuple[SinkTokensRecord, np.ndarray]:
    """Score a stream whose sinks are its own first tokens, line feeds, random tokens or BOS; or without.

    Other sinks are put before the stream: they are the first tokens that the cache sees. Compared are the
    tokens whose query no longer sees all of the stream in any of these caches, paired with the first kind.

    Args:
        model_dir: a transformers model folder.
        title: true name of the model, if its folder does not say it.
        ids: (N,) token ids of the stream.
        dataset: the true name of the text.
        cfg: what is kept of every kind; without sinks, a window of equal capacity.
        compute: number type, device and threads.
        bootstrap: settings of the intervals; its seed draws the random tokens.

    Returns:
        the record, and the losses of the stream under every kind, (kinds, N-1) float32 in nats.

    Raises:
        ValueError: for any mistake in the above; if nothing is evicted.

    Source: arXiv:2309.17453, table 1.
    """
    opened = open_model(model_dir, compute, title=title)
    first = cfg.capacity
    if first >= len(ids) - 1:
        raise ValueError(
            f"nothing is evicted at capacity {first} in {len(ids)} tokens; take more of the text"
        )
    prefixes = draw_prefixes(read_tokenizer(Path(model_dir)), ids, cfg.n_sink, bootstrap.seed)
    losses, rows = [], []
    for kind, prefix in prefixes.items():
        kept = cfg if prefix is not None else StreamConfig(n_sink=0, window_size=cfg.capacity)
        before = [] if prefix is None else prefix
        of_all, _ = score_stream(opened.model, np.concatenate((np.array(before, np.int64), ids)), kept)
        losses.append(of_all[len(before) :].astype(np.float32))
        rows.append(
            {
                "sinks": kind,
                "prefix": before,
                "n_sink": kept.n_sink,
                "window_size": kept.window_size,
                "capacity": kept.capacity,
                "common": {
                    **(after_token(losses[-1], first, bootstrap) or {}),
                    **paired_increase(losses[-1][first:], losses[0][first:], bootstrap, start=first),
                },
            }
        )
    record: SinkTokensRecord = {
        **opened.describe(__file__, dataset, BLOCKS, bootstrap),  # type: ignore[typeddict-item]
        "first_token": first,
        "rows": rows,
        "tokens": {"count": len(ids), "sha256": hash_ids(ids), "scored": len(ids) - 1},
    }
    return record, np.stack(losses)


def draw_prefixes(tokenizer: Any, ids: np.ndarray, n_sink: int, seed: int) -> dict[str, list[int] | None]:
    """Return what is put before a stream, by the kind of its sinks; None stands for no sinks.

    Random tokens are drawn from those of the text, without special ones. BOS, where the tokenizer has one,
    takes the first place, and the stream's own first tokens the others.

    Raises:
        ValueError: if a line feed is not one token of the tokenizer.
    """
    line_feed = tokenizer("\n", add_special_tokens=False)["input_ids"]
    line_feed = line_feed[-1:] if tokenizer.decode(line_feed[-1:]) == "\n" else []
    if not line_feed:
        raise ValueError("the tokenizer has no token that is a line feed and nothing else")
    plain = np.setdiff1d(ids, tokenizer.all_special_ids)
    random = np.random.default_rng(seed).choice(plain, (len(RANDOM_DRAWS), n_sink)).tolist()
    kinds: dict[str, list[int] | None] = {"first tokens": [], "line feeds": line_feed * n_sink}
    kinds |= {f"random tokens {letter}": drawn for letter, drawn in zip(RANDOM_DRAWS, random, strict=True)}
    if tokenizer.bos_token_id is not None:
        kinds["BOS, then first tokens" if n_sink > 1 else "BOS"] = [tokenizer.bos_token_id]
    return {**kinds, "none": None}
