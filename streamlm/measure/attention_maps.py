"""The mean attention of short sentences: logits and weights of every layer and head."""

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
from streamlm.config import Compute
from streamlm.measure.open_model import open_model
from streamlm.measure.scoring import check_ids
from streamlm.records.files import hash_ids
from streamlm.records.paper import AttentionMapsRecord
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig, block_bootstrap

BATCH = 64  # sentences that are read at once
ENDS = (".", "?", "!")


@dataclass(frozen=True, kw_only=True)
class SentenceConfig:
    """What is read."""

    sentences: int
    sentence_tokens: int  # from the beginning of each


def measure_attention_maps(
    *,
    model_dir: Path | str,
    title: str | None,
    ids: np.ndarray,
    dataset: str,
    sentences: SentenceConfig,
    compute: Compute,
    bootstrap: BootstrapConfig,
) -> tuple[AttentionMapsRecord, np.ndarray]:
    """Return the mean attention over beginnings of sentences, and the maps of every head.

    Args:
        model_dir: a transformers model folder.
        title: true name of the model, if its folder does not say it.
        ids: (N,) token ids of the text; sentences are drawn from it.
        dataset: the true name of the text.
        sentences: what is read.
        compute: number type, device and threads.
        bootstrap: settings of the intervals; sentences are taken as independent.

    Returns:
        the record; and (2, L, H, T, T) float32 mean logits and weights, NaN and 0 where hidden. L are the
        layers that attend, in order.

    Raises:
        ValueError: for any mistake in the above; if the text has too few sentences.

    Source: arXiv:2309.17453, figure 2 ("average attention logits over 256 sentences").
    """
    opened = open_model(model_dir, compute, title=title)
    check_ids(ids, opened.vocab_size)
    starts = draw_sentences(ids, read_tokenizer(Path(model_dir)), sentences, bootstrap.seed)
    rows = ids[starts[:, None] + np.arange(sentences.sentence_tokens)]
    layers, maps, shares = mean_attention(opened.model, rows)
    cfg = replace(bootstrap, block=1)
    protocol = f"the first {sentences.sentence_tokens} tokens of each of {len(rows)} sentences, read alone"
    record: AttentionMapsRecord = {
        **opened.describe(__file__, dataset, protocol, bootstrap),  # type: ignore[typeddict-item]
        "sentences": asdict(sentences),
        "layers": [describe_layer(layer, maps[:, i], shares[:, i], cfg) for i, layer in enumerate(layers)],
        "tokens": {"count": rows.size, "sha256": hash_ids(rows.reshape(-1))},
    }
    return record, maps.astype(np.float32)


def describe_layer(layer: int, maps: np.ndarray, shares: np.ndarray, cfg: BootstrapConfig) -> Any:
    """Return what a record has of one layer: its maps, the mean over heads; shares are (S, H)."""
    logits, weights = maps.mean(axis=1)
    mean = block_bootstrap(shares.mean(axis=1), cfg)
    seen = np.tril(np.ones(logits.shape, bool))
    return {
        "layer": layer,
        "logits": [row[kept].tolist() for row, kept in zip(logits, seen, strict=True)],
        "weights": [row[kept].tolist() for row, kept in zip(weights, seen, strict=True)],
        "first_token": mean.mean,
        "first_token_interval": [mean.low, mean.high],
        "first_token_by_head": shares.mean(axis=0).tolist(),
    }


def draw_sentences(ids: np.ndarray, tokenizer: Any, sentences: SentenceConfig, seed: int) -> np.ndarray:
    """Return where some sentences of a text begin, (S,) ascending, drawn by the seed.

    A sentence begins after a token that ends in one of `ENDS`, if the next letter is a capital.

    Raises:
        ValueError: if there are too few.
    """
    words = {token: tokenizer.decode([token]) for token in np.unique(ids).tolist()}
    starts, capital = [], False  # whether the next character that is no space is a capital letter
    for i in range(len(ids) - 1, 0, -1):
        if letters := words[int(ids[i])].strip():
            capital = letters[0].isupper()
        if capital and words[int(ids[i - 1])].rstrip().endswith(ENDS):
            starts.append(i)
    whole = np.array([start for start in reversed(starts) if start + sentences.sentence_tokens <= len(ids)])
    if len(whole) < sentences.sentences:
        raise ValueError(
            f"the text has {len(whole):,} sentences that begin with a capital letter, and "
            f"{sentences.sentences:,} are asked for; take fewer sentences or more text"
        )
    return np.sort(np.random.default_rng(seed).choice(whole, sentences.sentences, replace=False))


@torch.inference_mode()
def mean_attention(model: PreTrainedModel, rows: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return which layers attend, their mean maps, and the share of the first token.

    Args:
        model: prepared for `SinkCache`.
        rows: (S, T) token ids, each row read alone.

    Returns:
        L indices; (2, L, H, T, T) mean logits and weights over the rows, NaN and 0 where hidden; and
        (S, L, H) shares of the attention of the last token that go to the first.
    """
    n_rows, n_tokens = rows.shape
    sums: dict[int, np.ndarray] = {}
    shares: dict[int, list[np.ndarray]] = {}

    def see(layer: int, seen: SeenBlock) -> None:
        queries, keys = seen.queries.cpu().numpy(), seen.keys.cpu().numpy()
        total = sums.setdefault(layer, np.zeros((2, seen.weights.shape[1], n_tokens, n_tokens)))
        logits = seen.logits.masked_fill(seen.logits == -torch.inf, 0)
        for part, values in zip(total, (logits, seen.weights), strict=True):
            part[:, queries[:, None], keys] += values.double().sum(0).cpu().numpy()
        if queries[-1] == n_tokens - 1:
            first = seen.weights[:, :, -1].double()[..., seen.keys == 0].sum(-1)
            shares.setdefault(layer, []).append(first.cpu().numpy())

    base = model.base_model
    with observing(see):
        for start in range(0, n_rows, BATCH):
            part = torch.as_tensor(rows[start : start + BATCH], device=model.device)
            cache = SinkCache(model.config, n_sink=0, window_size=n_tokens)
            base(part, **cache_argument(base, cache))
    layers = sorted(sums)
    maps = np.stack([sums[layer] for layer in layers], axis=1) / n_rows
    maps[0][..., ~np.tril(np.ones((n_tokens, n_tokens), bool))] = np.nan
    return layers, maps, np.stack([np.concatenate(shares[layer]) for layer in layers], axis=1)
