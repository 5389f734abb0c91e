"""What presses are compared on: a model that they work on, texts, and the beginning of a record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from streamlm.config import Compute
from streamlm.extras import need
from streamlm.measure.device import now
from streamlm.measure.open_model import open_model
from streamlm.measure.scoring import check_ids
from streamlm.presses.adapter import check_model
from streamlm.records.files import hash_ids
from streamlm.records.types import Record
from streamlm.stats import BootstrapConfig

Texts = Mapping[str, np.ndarray]  # token ids (N,) by the true name of the text


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Whole numbers of a comparison.

    Raises:
        ValueError: if one is below 1.
    """

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a comparison is made on.

    Args:
        model_dir: a transformers model folder.
        compute: number type, device and threads.
        title: true name of the model, if its folder does not say it.
        texts: token ids (N,), as many as are compared or more, by the true name of the text.
        bootstrap: settings of the intervals.
    """

    model_dir: Path | str
    compute: Compute
    title: str | None = None
    texts: Texts
    bootstrap: BootstrapConfig


@dataclass(frozen=True)
class OpenedSetting:
    """What a comparison starts from."""

    model: PreTrainedModel  # as transformers has it
    texts: Mapping[str, Tensor]  # (n_ids,) the tokens that are used
    record: Record


def open_setting(setting: Setting, *, module: str, n_ids: int) -> OpenedSetting:
    """Return the model and the first `n_ids` of each text, with the beginning of a record about them.

    Args:
        setting: model and texts.
        module: the file that measures.
        n_ids: token ids used of each text.

    Raises:
        ValueError: if presses cannot be compared on them.
    """
    need("kvpress")
    for dataset, ids in setting.texts.items():
        if len(ids) < n_ids:
            raise ValueError(
                f"{n_ids} tokens are compared and {dataset} has {len(ids)}; take a longer text or fewer"
            )
    bootstrap = setting.bootstrap
    torch.manual_seed(bootstrap.seed)  # of presses that draw
    opened = open_model(setting.model_dir, setting.compute, title=setting.title, prepared=False)
    model = opened.model
    check_model(model)
    for ids in setting.texts.values():
        check_ids(ids, opened.vocab_size)
    record = {
        "model": opened.title,
        "trained_length": opened.trained_length,
        "confidence": bootstrap.confidence,
        "bootstrap": asdict(bootstrap),
        "environment": {
            **opened.environment(module),
            "kvpress": metadata.version("kvpress"),
            "seed": bootstrap.seed,
        },
    }
    used = {
        dataset: torch.as_tensor(ids[:n_ids], dtype=torch.int64, device=model.device)
        for dataset, ids in setting.texts.items()
    }
    return OpenedSetting(model, used, record)


def name_text(dataset: str, ids: Tensor) -> Record:
    """Return the beginning of a record about one text."""
    return {"dataset": dataset, "tokens": {"count": len(ids), "sha256": hash_ids(ids.cpu().numpy())}}


def step(model: PreTrainedModel, token: Tensor, cache: Cache, position: int | None) -> tuple[Tensor, float]:
    """Decode one token (1, 1), output layer included; return its hidden state (1, H), and milliseconds.

    A position of None leaves it to the cache.
    """
    position_ids = None if position is None else torch.tensor([[position]], device=token.device)
    begin = now(token.device)
    hidden = model.base_model(token, past_key_values=cache, position_ids=position_ids).last_hidden_state[0]
    model.get_output_embeddings()(hidden)
    return hidden, 1e3 * (now(token.device) - begin)
