"""What a model says behind a smaller cache, beside what it says behind the whole one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamlm.measure.scoring import HEAD_BLOCK
from streamlm.stats import BootstrapConfig, block_bootstrap, describe_losses


@dataclass(frozen=True)
class Agreement:
    """Of every scored token: its loss, and how its distribution agrees with the dense one."""

    losses: np.ndarray  # (N,) nats
    divergences: np.ndarray  # (N,) nats, from the dense distribution to this one
    same_first: np.ndarray  # (N,) bool, whether both hold the same token for the likeliest

    @classmethod
    def joined(cls, parts: "list[Agreement]") -> "Agreement":
        """Return the agreement over several runs of tokens, one behind the other."""
        columns = zip(*((part.losses, part.divergences, part.same_first) for part in parts), strict=True)
        return cls(*map(np.concatenate, columns))

    def describe(self, cfg: BootstrapConfig) -> dict[str, Any]:
        """Return perplexity, mean divergence and agreement in the first token, with intervals."""
        divergence = block_bootstrap(self.divergences, cfg)
        return {
            **describe_losses(self.losses, cfg),
            "kl_nats": divergence.mean,
            "kl_nats_interval": [divergence.low, divergence.high],
            "top1_agreement": float(self.same_first.mean()),
        }


def compare_hidden(head: nn.Module, hidden: Sequence[Tensor], targets: Tensor) -> list[Agreement]:
    """Return how hidden states (T, H) do on targets (T,) and agree with the first of them, the dense ones."""
    columns: list[list[tuple[Tensor, ...]]] = [[] for _ in hidden]
    wide = torch.promote_types(hidden[0].dtype, torch.float32)
    for target, *rows in zip(*(tensor.split(HEAD_BLOCK) for tensor in (targets, *hidden)), strict=True):
        dense = head(rows[0]).to(wide).log_softmax(-1)  # (t, V)
        for column, row in zip(columns, rows, strict=True):
            log_p = dense if row is rows[0] else head(row).to(wide).log_softmax(-1)
            divergence = nn.functional.kl_div(log_p, dense, reduction="none", log_target=True).sum(-1)
            loss = nn.functional.nll_loss(log_p, target, reduction="none")
            column.append((loss, divergence, log_p.argmax(-1) == dense.argmax(-1)))
    return [
        Agreement(*(torch.cat(parts).cpu().numpy() for parts in zip(*column, strict=True)))
        for column in columns
    ]
