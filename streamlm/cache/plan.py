"""One pass of new tokens through a cache of sinks + window: slots, positions, pads, planned once."""

from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from streamlm.cache.attention import DecodePlan, StreamPlan, plan_stream
from streamlm.config import StreamConfig
from streamlm.cache.rope import Rotary, rotation

Place = TypeVar("Place", int, Tensor)


def slot_of(token: Place, cfg: StreamConfig) -> Place:
    """Return the ring slot of a token behind the sinks, by its place in its row."""
    return cfg.n_sink + (token - cfg.n_sink) % cfg.window_size


@dataclass(frozen=True)
class DecodeStep:
    """One token per row, behind the sinks of every row, through the layers of one geometry on one device."""

    attention: DecodePlan
    slot: int | Tensor  # where the token goes; (1,) at a fixed address, (B, 1) where rows differ
    n_held: int  # leading slots that hold a token of some row after this step
    sink_turn: tuple[Tensor, Tensor] | None = None  # cos, sin (1 or B, 1, 1, R): from as written to in place


@dataclass(frozen=True)
class ChunkStep:
    """A pass of any number of tokens through the layers of one geometry on one device."""

    attention: StreamPlan
    slots: Tensor  # (m,), or (B, m) where rows differ: where the last m new tokens go
    sinks: Tensor  # (n,) or (B, n) sinks after the pass, as places in: stored sinks, then new tokens
    band: Tensor  # (k,) or (B, k) slots of the past tokens of the band


@dataclass
class CacheStep:
    """One pass of new tokens through the cache; what layers share is planned once."""

    n_past: int  # tokens seen before, pads counted
    n_new: int
    shift: int  # token t is rotated as position t - shift
    geometries: tuple[StreamConfig, ...]  # of every layer
    padding: "Padding"
    rotary: Rotary
    dtype: torch.dtype  # of rotations, at least float32
    block: int  # queries per attention block
    position: Tensor | None = None  # (1, 1) at a fixed address, for a captured step
    planned: dict[tuple[StreamConfig, torch.device], DecodeStep | ChunkStep] = field(default_factory=dict)

    def layer(self, cfg: StreamConfig, device: torch.device) -> DecodeStep | ChunkStep:
        """Return the plan of the layers with this geometry on this device."""
        plan = self.planned.get((cfg, device))
        if plan is None:
            make = self._decode if self.is_decoding(cfg) else self._chunk
            plan = self.planned[cfg, device] = make(cfg, device)
        return plan

    def _decode(self, cfg: StreamConfig, device: torch.device) -> DecodeStep:
        padding, last, visible = self.padding, cfg.capacity - 1, None
        n_held = min(self.n_past + 1 - padding.least, cfg.capacity)
        slot: int | Tensor
        if padding.pads is None:
            slot = slot_of(self.n_past, cfg)
            turn = torch.tensor([self.n_past - min(self.n_past, last) - self.shift], device=device)
        else:
            place = self.n_past - padding.pads.to(device)  # (B,)
            slot = slot_of(place, cfg)[:, None]
            turn = place - place.clamp(max=last) - self.shift
            if self.n_past - padding.most < last:
                visible = (torch.arange(n_held, device=device) <= place[:, None])[:, None, None]
        sink_turn = None
        if cfg.n_sink:
            sink_turn = rotation(self.rotary.inv_freq.to(device), turn[:, None, None], self.dtype)
        return DecodeStep(DecodePlan(visible), slot, n_held, sink_turn)

    def _chunk(self, cfg: StreamConfig, device: torch.device) -> ChunkStep:
        padding, end = self.padding, self.n_past + self.n_new
        pads = None if padding.pads is None else padding.pads.to(device)

        def slots(start: int, stop: int) -> Tensor:  # of tokens, (n,) or (B, n)
            tokens = torch.arange(start, max(start, stop), device=device)
            return slot_of(tokens if pads is None else tokens - pads[:, None], cfg)

        plan = plan_stream(
            cfg,
            Rotary(self.rotary.inv_freq.to(device), self.rotary.interleaved),
            n_past=self.n_past,
            n_new=self.n_new,
            dtype=self.dtype,
            shift=self.shift,
            pads=pads,
            least_pads=padding.least,
            block=self.block,
        )
        sinks = torch.arange(plan.n_sinks, device=device)
        if self.n_past - padding.most < cfg.n_sink:  # of some row, some are among the new tokens
            born = sinks if pads is None else sinks + pads[:, None]
            sinks = torch.where(born < self.n_past, sinks, cfg.n_sink + born - self.n_past)
            sinks = sinks.clamp(max=cfg.n_sink + self.n_new - 1)  # not born yet, and hidden
        return ChunkStep(
            attention=plan,
            slots=slots(max(self.n_past, end - cfg.window_size), end),
            sinks=sinks,
            band=slots(plan.first_band, self.n_past),
        )

    def positions(self, device: torch.device) -> Tensor:
        """Return the bounded positions that the model is to rotate with, (1, T)."""
        if self.position is not None:
            return self.position
        first = self.n_past - self.shift
        return torch.arange(first, first + self.n_new, device=device)[None]

    def is_decoding(self, cfg: StreamConfig) -> bool:
        """Return whether this is one token behind the sinks of every row."""
        return self.n_new == 1 and self.n_past - self.padding.most >= cfg.n_sink


@dataclass
class Padding:
    """Left pads of the rows of a batch, read from attention masks as they come."""

    pads: Tensor | None = None  # (B,), None if there are none
    least: int = 0
    most: int = 0

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
        begun = self.most < n_past
        if mask is None or (begun and n_new == 1):  # one step: a look at the mask would wait for the device
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
                "attention_mask hides a token behind a real one; SinkCache takes left padding only. If the "
                "prompt itself holds pad_token_id, pass an attention_mask of ones"
            )
        pads = torch.where(waiting, n_past + leading, old)
        self.least, self.most = int(pads.min()), int(pads.max())
        self.pads = pads if self.most else None

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if self.pads is not None:
            self.pads = self.pads[rows.to(self.pads.device)]
            self.least, self.most = int(self.pads.min()), int(self.pads.max())
