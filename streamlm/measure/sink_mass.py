"""The share of attention that the first tokens of a text get, by layer and head, and along a stream."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.observe import SeenBlock
from streamlm.cache.prepare import observing
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import SHARE_QUERIES, Compute, StreamConfig
from streamlm.measure.open_model import open_model
from streamlm.measure.progress import progress
from streamlm.measure.scoring import CHUNK, check_ids
from streamlm.records.files import hash_ids
from streamlm.records.paper import SinkMassRecord
from streamlm.stats import BootstrapConfig, block_bootstrap

PART = 8192  # tokens of a stream between two points


@dataclass(frozen=True, kw_only=True)
class SinkMassConfig:
    """What is read, and how many tokens are looked at.

    Raises:
        ValueError: if a context is not longer than what is looked at in it.
    """

    n_sink: int  # of streaming; of so many first tokens the share is taken
    capacity: int  # of streaming
    contexts: int  # pieces of the text, each read alone
    context_tokens: int  # of a piece
    stream_tokens: int  # of the stream

    def __post_init__(self) -> None:
        if self.context_tokens < (least := self.n_sink + SHARE_QUERIES):
            raise ValueError(f"a context must have at least {least} tokens, got {self.context_tokens}")


def measure_sink_mass(
    *,
    model_dir: Path | str,
    title: str | None,
    ids: np.ndarray,
    dataset: str,
    sizes: SinkMassConfig,
    compute: Compute,
    bootstrap: BootstrapConfig,
) -> SinkMassRecord:
    """Return the share of attention on the first tokens: after contexts, and along a stream.

    Args:
        model_dir: a transformers model folder.
        title: true name of the model, if its folder does not say it.
        ids: (N,) token ids of the text.
        dataset: the true name of the text.
        sizes: what is read.
        compute: number type, device and threads.
        bootstrap: settings of the intervals; contexts are taken as independent.

    Raises:
        ValueError: for any mistake in the above; if the text is too short.

    Source: arXiv:2309.17453, appendix, attention of the 4,096th token.
    """
    opened = open_model(model_dir, compute, title=title)
    check_ids(ids, opened.vocab_size)
    contexts = cut_contexts(ids, sizes)
    window = sizes.capacity - sizes.n_sink
    kept = {
        "dense": StreamConfig(n_sink=sizes.n_sink, window_size=sizes.context_tokens),
        "streaming": StreamConfig(n_sink=sizes.n_sink, window_size=window),
    }
    stream = ids[: sizes.stream_tokens]
    with progress(2 * contexts.size + len(stream), "token") as bar:
        after_contexts = {
            method: np.stack([_after(opened.model, row, cfg, bar) for row in contexts])
            for method, cfg in kept.items()
        }
        shares = shares_along(opened.model, stream, kept["streaming"], bar)
    parts = [shares[start : start + PART] for start in range(0, len(shares), PART)]
    along = [block_bootstrap(part, bootstrap) for part in parts]
    protocol = (
        f"mean over the last {SHARE_QUERIES} queries of {sizes.contexts} contexts of "
        f"{sizes.context_tokens:,} tokens"
    )
    record: SinkMassRecord = {
        **opened.describe(__file__, dataset, protocol, bootstrap),  # type: ignore[typeddict-item]
        "sizes": asdict(sizes),
        "methods": {method: _describe(shares, bootstrap) for method, shares in after_contexts.items()},
        "along": {
            "tokens_seen": [min((i + 1) * PART, len(shares)) for i in range(len(parts))],
            "share": [part.mean for part in along],
            "share_interval": [[part.low, part.high] for part in along],
        },
        "tokens": {"count": len(ids), "sha256": hash_ids(ids)},
    }
    return record


def cut_contexts(ids: np.ndarray, sizes: SinkMassConfig) -> np.ndarray:
    """Return pieces of a text (contexts, context_tokens), as far apart as it allows.

    Raises:
        ValueError: if the text is too short for pieces that do not overlap.
    """
    needed = sizes.contexts * sizes.context_tokens
    if len(ids) < needed:
        raise ValueError(
            f"{sizes.contexts} contexts of {sizes.context_tokens:,} tokens take {needed:,}, and the text has "
            f"{len(ids):,}; take fewer or shorter contexts"
        )
    starts = np.linspace(0, len(ids) - sizes.context_tokens, sizes.contexts).astype(int)
    return ids[starts[:, None] + np.arange(sizes.context_tokens)]


def _describe(shares: np.ndarray, bootstrap: BootstrapConfig) -> Any:
    """Return what a record has of shares (contexts, L, H, n_sink): each layer, its heads, intervals."""
    cfg = replace(bootstrap, block=1)
    layers = []
    for layer in shares.transpose(1, 0, 2, 3):
        tokens = [block_bootstrap(token, cfg) for token in layer.mean(axis=1).T]
        layers.append(
            {
                "share": [token.mean for token in tokens],  # of each of the first tokens
                "share_interval": [[token.low, token.high] for token in tokens],
                "by_head": layer.mean(axis=0).sum(axis=-1).tolist(),  # of all of them together
            }
        )
    return layers


@torch.inference_mode()
def _after(model: PreTrainedModel, ids: np.ndarray, cfg: StreamConfig, bar: Any) -> np.ndarray:
    """Return the mean shares (L, H, n_sink) of the first tokens at the last queries of a context."""
    base, means = model.base_model, dict[int, np.ndarray]()
    cache = SinkCache(model.config, n_sink=cfg.n_sink, window_size=cfg.window_size)
    tokens = torch.as_tensor(ids, device=model.device)[None]
    *before, last = tokens.split([*_passes(tokens.shape[1] - SHARE_QUERIES, cache), SHARE_QUERIES], dim=1)
    for part in before:
        base(part, **cache_argument(base, cache))
        bar.update(part.shape[1])

    def see(layer: int, seen: SeenBlock) -> None:
        means[layer] = means.get(layer, np.zeros(1)) + first_shares(seen, cfg.n_sink).sum(1) / SHARE_QUERIES

    with observing(see):
        base(last, **cache_argument(base, cache))
    bar.update(SHARE_QUERIES)
    return np.stack([means[layer] for layer in sorted(means)])


def first_shares(seen: SeenBlock, n_first: int) -> np.ndarray:
    """Return the shares of the first tokens of a stream in the attention of each query, (H, Tq, n_first)."""
    weights = seen.weights[0].double()
    shares = [weights[..., seen.keys == token].sum(-1) for token in range(n_first)]
    return torch.stack(shares, dim=-1).cpu().numpy()


@torch.inference_mode()
def shares_along(model: PreTrainedModel, ids: np.ndarray, cfg: StreamConfig, bar: Any) -> np.ndarray:
    """Return the share of the sinks in the attention of every query, (N,): the mean over layers and heads."""
    base, layers = model.base_model, set[int]()
    cache = SinkCache(model.config, n_sink=cfg.n_sink, window_size=cfg.window_size)
    shares, stream = np.zeros(len(ids)), torch.as_tensor(ids, device=model.device)[None]

    def see(layer: int, seen: SeenBlock) -> None:
        layers.add(layer)
        shares[seen.queries.cpu().numpy()] += first_shares(seen, cfg.n_sink).sum(-1).mean(0)

    with observing(see):
        for part in stream.split(_passes(len(ids), cache), dim=1):
            base(part, **cache_argument(base, cache))
            bar.update(part.shape[1])
    return shares / len(layers)


def _passes(n_tokens: int, cache: SinkCache) -> list[int]:
    """Return how many tokens each pass has."""
    chunk = cache.longest_pass(CHUNK)
    return [min(chunk, n_tokens - start) for start in range(0, n_tokens, chunk)]
