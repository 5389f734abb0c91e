"""One pass of new tokens through a cache of sinks + window: slots, positions, pads, planned once.

A pass is planned as a whole (`PassPlan`), and once for all layers of one kind, which have one geometry and
rotate alike, on one device: any number of tokens by a `ChunkPlan`, one token after the sinks of every row by
a `DecodePlan`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from streamlm.cache.attention import AttentionPlan, plan_attention, seen_from_sinks
from streamlm.cache.rope import Rotary, Rotation
from streamlm.config import StreamConfig

Position = TypeVar("Position", int, Tensor)
LayerKind = tuple[StreamConfig, Rotary | None, torch.device]  # what layers share that are planned together


def slot_of(position: Position, cfg: StreamConfig) -> Position:
    """Return the ring slot of a token after the sinks, by its position in its row."""
    return cfg.n_sink + (position - cfg.n_sink) % cfg.window_size


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """One token per row, after the sinks of every row, through layers of one kind on one device."""

    slot: int | Tensor  # where the token goes; (1,) at a fixed address, (B, 1) where rows differ
    n_held: int  # leading slots that hold a token of some row after this step
    visible: Tensor | None = None  # (B, 1, 1, n_held) bool, where rows differ; None if every key is visible
    # (1 or B, 1, 1, R): from as written to as this token sees them; None if the layers do not rotate
    sink_rotation: Rotation | None = None


@dataclass(frozen=True)
class ChunkPlan:
    """Any number of tokens through layers of one kind on one device."""

    attention: AttentionPlan
    slots: Tensor  # (m,), or (B, m) where rows differ: where the last m new tokens go
    sinks: Tensor  # (n,) or (B, n) sinks after the pass, as indices into: stored sinks, then new tokens
    band: Tensor  # (k,) or (B, k) slots of the past tokens of the band


@dataclass
class Padding:
    """Left pads of the rows of a batch, read from attention masks as they come."""

    pads: Tensor | None = None  # (B,), None if there are none
    min: int = 0
    max: int = 0

    @classmethod
    def of(cls, pads: Tensor | None) -> "Padding":
        """Return the padding of rows with these left pads, (B,)."""
        return cls() if pads is None else cls(pads, int(pads.min()), int(pads.max()))

    def read(self, mask: Tensor | None, n_past: int, n_new: int) -> None:
        """Take in the mask of a pass; once every row has a real token, only check it.

        Args:
            mask: (B, n) with the new tokens last, nonzero where real; or None.
            n_past: tokens seen before, pads counted.
            n_new: tokens of the pass.

        Raises:
            ValueError: if a pad follows a real token.
        """
        all_real = self.max < n_past
        if mask is None or (all_real and n_new == 1):  # one step: to read the mask would wait for the device
            return
        if mask.ndim != 2 or mask.shape[1] < n_new:
            raise ValueError(
                f"attention_mask must be (batch, tokens) and cover the new ones, got {tuple(mask.shape)}"
            )
        new = mask[:, -n_new:].bool()
        old = new.new_zeros(len(new), dtype=torch.int64) if self.pads is None else self.pads.to(new.device)
        waiting = old >= n_past  # rows without a real token so far
        leading = (~new).long().cumprod(1).sum(1)
        if not bool((new.sum(1) + leading * waiting == n_new).all()):
            raise ValueError(
                "attention_mask hides a token after a real one; SinkCache takes left padding only. If the "
                "prompt itself holds pad_token_id, pass an attention_mask of ones; for later turns of "
                "unequal length, use one cache for each row"
            )
        pads = torch.where(waiting, n_past + leading, old)
        self.min, self.max = int(pads.min()), int(pads.max())
        self.pads = pads if self.max else None

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.pads is not None:
            self.pads = self.pads[rows.to(self.pads.device)]
            self.min, self.max = int(self.pads.min()), int(self.pads.max())


@dataclass
class PassPlan:
    """One pass of new tokens through the cache; what layers share is planned once."""

    n_past: int  # tokens seen before, pads counted
    n_new: int
    shift: int  # token t is rotated as position t - shift
    padding: Padding
    rotaries: Sequence[Rotary | None]  # of each layer; layers that rotate alike have the same object
    dtype: torch.dtype  # of rotations, at least float32
    query_block: int  # queries per attention block
    position: Tensor | None = None  # (1, 1) at a fixed address, for a captured step
    planned: dict[LayerKind, DecodePlan | ChunkPlan] = field(default_factory=dict)

    def layer(self, index: int, cfg: StreamConfig, device: torch.device) -> DecodePlan | ChunkPlan:
        """Return the plan of a layer of the model, which has this geometry, on this device."""
        kind = cfg, self.rotaries[index], device
        plan = self.planned.get(kind)
        if plan is None:
            is_decoding = self.n_new == 1 and self.n_past - self.padding.max >= cfg.n_sink
            plan = self._decode(*kind) if is_decoding else self._chunk(*kind)
            self.planned[kind] = plan
        return plan

    def positions(self, device: torch.device) -> Tensor:
        """Return the bounded positions that the model is to rotate with, (1, T)."""
        if self.position is not None:
            return self.position
        first = self.n_past - self.shift
        return torch.arange(first, first + self.n_new, device=device)[None]

    def _decode(self, cfg: StreamConfig, rotary: Rotary | None, device: torch.device) -> DecodePlan:
        padding, visible = self.padding, None
        n_held = min(self.n_past + 1 - padding.min, cfg.capacity)
        slot: int | Tensor
        if padding.pads is None:
            slot = slot_of(self.n_past, cfg)
            # Filled where it is: to make it of a list would copy it from the host.
            position = torch.full((1,), self.n_past, device=device)
        else:
            position = self.n_past - padding.pads.to(device)  # (B,)
            slot = slot_of(position, cfg)[:, None]
            if self.n_past - padding.max < cfg.capacity - 1:
                visible = (torch.arange(n_held, device=device) <= position[:, None])[:, None, None]
        rotation = None
        if cfg.n_sink and rotary is not None:
            nearer = position - seen_from_sinks(position, cfg) - self.shift
            rotation = rotary.to(device).of_stored.by(nearer[:, None, None], self.dtype)
        return DecodePlan(slot, n_held, visible, rotation)

    def _chunk(self, cfg: StreamConfig, rotary: Rotary | None, device: torch.device) -> ChunkPlan:
        padding, end = self.padding, self.n_past + self.n_new
        pads = None if padding.pads is None else padding.pads.to(device)

        def slots(start: int, stop: int) -> Tensor:  # of tokens, (n,) or (B, n)
            tokens = torch.arange(start, max(start, stop), device=device)
            return slot_of(tokens if pads is None else tokens - pads[:, None], cfg)

        plan = plan_attention(
            cfg,
            rotary,
            device,
            n_past=self.n_past,
            n_new=self.n_new,
            dtype=self.dtype,
            shift=self.shift,
            pads=pads,
            min_pads=padding.min,
            block=self.query_block,
        )
        sinks = torch.arange(plan.n_sinks, device=device)
        if self.n_past - padding.max < cfg.n_sink:  # of some row, some are among the new tokens
            tokens = sinks if pads is None else sinks + pads[:, None]
            sinks = torch.where(tokens < self.n_past, sinks, cfg.n_sink + tokens - self.n_past)
            sinks = sinks.clamp(max=cfg.n_sink + self.n_new - 1)  # not seen yet, and hidden
        return ChunkPlan(
            attention=plan,
            slots=slots(max(self.n_past, end - cfg.window_size), end),
            sinks=sinks,
            band=slots(plan.first_band, self.n_past),
        )
