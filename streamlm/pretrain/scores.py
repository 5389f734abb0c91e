"""What a twin loses with fewer sinks, and where it looks."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from streamlm.config import Compute, StreamConfig
from streamlm.measure.attention_maps import describe_layer, mean_attention
from streamlm.measure.open_model import open_model
from streamlm.measure.scorers import BLOCKS
from streamlm.measure.scoring import score_stream
from streamlm.pretrain.twins import SINK, give_zero_sink
from streamlm.records.files import hash_ids
from streamlm.records.paper import TrainingRecord, TwinRecord
from streamlm.stats import BootstrapConfig, describe_losses, paired_increase

MAP_TOKENS = 32  # bytes of a context whose attention is drawn


@dataclass(frozen=True, kw_only=True)
class TwinSinks:
    """What is kept of the texts, in bytes.

    Raises:
        ValueError: if that leaves no window.
    """

    n_sinks: list[int]
    capacity: int  # n_sink + window_size, the same for all

    def __post_init__(self) -> None:
        if self.capacity <= max(self.n_sinks):
            raise ValueError(f"capacity {self.capacity} leaves no window beside {max(self.n_sinks)} sinks")


def measure_twin(
    *,
    model_dir: Path | str,
    training: TrainingRecord,
    texts: list[np.ndarray],
    dataset: str,
    sinks: TwinSinks,
    compute: Compute,
    bootstrap: BootstrapConfig,
) -> tuple[TwinRecord, np.ndarray]:
    """Score the texts that a twin was not trained on, with several numbers of sinks at equal memory.

    A learnable sink token stands before each text and is the first token that the cache sees; a zero sink is
    in every softmax, whatever the cache keeps. Compared are the bytes whose query no longer sees all of its
    text in any of the caches, paired with the largest number of sinks.

    Args:
        model_dir: folder of the twin.
        training: its record.
        texts: (N,) uint8 bytes of each text.
        dataset: true names of the texts.
        sinks: what is kept.
        compute: number type, device and threads.
        bootstrap: settings of the intervals.

    Returns:
        the record, and the losses of the texts, one after another, with every number of sinks,
        (len(n_sinks), scored) float32 in nats per byte.

    Raises:
        ValueError: for any mistake in the above; if nothing is evicted.

    Source: arXiv:2309.17453, table 3 and figure 7.
    """
    if sinks.capacity >= (shortest := min(map(len, texts))) - 1:
        raise ValueError(f"nothing is evicted at capacity {sinks.capacity} in {shortest} bytes; take more")
    opened = open_model(model_dir, compute, title=training["model"])
    if training["twin"] == "zero_sink":
        give_zero_sink(opened.model)
    before = [SINK] * (training["twin"] == "sink_token")
    streams = [np.concatenate((np.array(before, np.int64), text.astype(np.int64))) for text in texts]
    kept = [StreamConfig(n_sink=n, window_size=sinks.capacity - n) for n in sinks.n_sinks]

    def score(cfg: StreamConfig) -> np.ndarray:
        found = [score_stream(opened.model, ids, cfg)[0][len(before) + sinks.capacity :] for ids in streams]
        return np.concatenate(found).astype(np.float32)

    losses = np.stack([score(cfg) for cfg in kept])  # (len(n_sinks), scored)
    most = int(np.argmax(sinks.n_sinks))
    whole = [len(text) // MAP_TOKENS * MAP_TOKENS for text in texts]
    contexts = [text[:end].reshape(-1, MAP_TOKENS) for text, end in zip(texts, whole, strict=True)]
    rows = np.concatenate(contexts).astype(np.int64)
    rows[:, : len(before)] = SINK
    layers, maps, shares = mean_attention(opened.model, rows)
    alone = replace(bootstrap, block=1)
    record: TwinRecord = {
        **opened.describe(__file__, dataset, BLOCKS, bootstrap),  # type: ignore[typeddict-item]
        "twin": training["twin"],
        "seed": training["seed"],
        "training": training,
        "rows": [
            {
                "n_sink": cfg.n_sink,
                "window_size": cfg.window_size,
                "capacity": cfg.capacity,
                "common": {
                    "first_token": sinks.capacity,
                    "scored": len(of_cfg),
                    **describe_losses(of_cfg, bootstrap),
                    **paired_increase(of_cfg, losses[most], bootstrap),
                },
            }
            for cfg, of_cfg in zip(kept, losses, strict=True)
        ],
        "contexts": {"count": len(rows), "tokens": MAP_TOKENS},
        "layers": [
            describe_layer(layer, maps[:, i], shares[:, i], alone)
            | {"zero_sink": 1 - float(maps[1][i][:, -1].sum(-1).mean())}
            for i, layer in enumerate(layers)
        ],
        "tokens": {
            "count": sum(map(len, texts)),
            "sha256": hash_ids(np.concatenate(texts).astype(np.int64)),
            "scored": losses.shape[1],
        },
    }
    return record, losses
