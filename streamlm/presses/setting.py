"""Where presses are compared: a model that they work on, a text, and the beginning of a record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from streamlm.measure.device import choose_device, describe_compute, now, parse_dtype, use_threads
from streamlm.cache.models import model_title, read_model, trained_length
from streamlm.presses.adapter import check_model
from streamlm.records import Record, hash_ids
from streamlm.measure.scoring import check_ids
from streamlm.stats import BootstrapConfig

Texts = Mapping[str, np.ndarray]  # token ids (N,) by the true name of the text


@dataclass(frozen=True)
class Setting:
    """What a comparison starts from."""

    model: PreTrainedModel  # as transformers has it
    texts: Mapping[str, Tensor]  # (n_ids,) the tokens that are used
    record: Record


def open_setting(
    *,
    module: str,
    model_dir: Path | str,
    texts: Texts,
    n_ids: int,
    bootstrap: BootstrapConfig,
    dtype: str,
    device: str,
    torch_threads: int | str,
    title: str | None,
) -> Setting:
    """Return a model and the first `n_ids` of each text, with the beginning of a record about them.

    `module` is the file that measures, the other arguments are those of `measure_compression`.

    Raises:
        ValueError: if presses cannot be compared on them.
    """
    for dataset, ids in texts.items():
        if len(ids) < n_ids:
            raise ValueError(
                f"{n_ids} tokens are compared and {dataset} has {len(ids)}; take a longer text or fewer"
            )
    use_threads(torch_threads)
    torch.manual_seed(bootstrap.seed)  # of presses that draw
    device = choose_device(device)
    model = read_model(model_dir, dtype=parse_dtype(dtype), device=device)
    check_model(model)
    for ids in texts.values():
        check_ids(ids, model.config.get_text_config(decoder=True).vocab_size)
    record = {
        "model": model_title(model) if title is None else title,
        "trained_length": trained_length(model),
        "confidence": bootstrap.confidence,
        "bootstrap": asdict(bootstrap),
        "environment": describe_compute(module, device=device, dtype=dtype)
        | {"kvpress": metadata.version("kvpress"), "seed": bootstrap.seed},
    }
    used = {
        dataset: torch.as_tensor(ids[:n_ids], dtype=torch.int64, device=model.device)
        for dataset, ids in texts.items()
    }
    return Setting(model, used, record)


def name_text(dataset: str, ids: Tensor) -> Record:
    """Return the beginning of a record about one text."""
    return {"dataset": dataset, "tokens": {"count": len(ids), "sha256": hash_ids(ids.cpu().numpy())}}


def step(model: PreTrainedModel, token: Tensor, cache: Cache, position: int | None) -> tuple[Tensor, float]:
    """Decode one token (1, 1), output layer included; return its hidden state (1, H), and milliseconds.

    A position of None leaves it to the cache.
    """
    place = None if position is None else torch.tensor([[position]], device=token.device)
    begin = now(token.device)
    hidden = model.base_model(token, past_key_values=cache, position_ids=place).last_hidden_state[0]
    model.get_output_embeddings()(hidden)
    return hidden, 1e3 * (now(token.device) - begin)
