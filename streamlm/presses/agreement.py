"""How a model predicts after a reduced cache, compared with the whole one."""

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
    """Loss of every scored token, and agreement of its distribution with that under the dense cache."""

    losses: np.ndarray  # (N,) nats
    divergences: np.ndarray  # (N,) nats, Kullback-Leibler, from the dense distribution to this one
    same_first: np.ndarray  # (N,) bool, whether the most likely token is the same

    @property
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """What is stored of every token: its loss, and its divergence."""
        return self.losses, self.divergences

    @classmethod
    def joined(cls, pieces: "list[Agreement]") -> "Agreement":
        """Return the agreement over several pieces of text, in order."""
        columns = zip(*((piece.losses, piece.divergences, piece.same_first) for piece in pieces), strict=True)
        return cls(*map(np.concatenate, columns))

    def describe(self, cfg: BootstrapConfig) -> dict[str, Any]:
        """Return perplexity and mean divergence with intervals, and the share of equal predictions."""
        divergence = block_bootstrap(self.divergences, cfg)
        return {
            **describe_losses(self.losses, cfg),
            "kl_nats": divergence.mean,
            "kl_nats_interval": [divergence.low, divergence.high],
            "top1_agreement": float(self.same_first.mean()),
        }


def stack_scores(scores: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> np.ndarray:
    """Return the `scores` of every text and method as float32: (2, texts, methods, tokens)."""
    return np.moveaxis(np.array(scores, dtype=np.float32), 2, 0)


def compare_hidden(head: nn.Module, hidden: Sequence[Tensor], targets: Tensor) -> list[Agreement]:
    """Compare several hidden states (T, H) on targets (T,) with the first of them, the dense ones."""
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
        Agreement(*(torch.cat(blocks).cpu().numpy() for blocks in zip(*column, strict=True)))
        for column in columns
    ]
