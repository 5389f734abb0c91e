"""Slots read and written by place; and a ring that holds its entries in fewer bits."""

import torch
from torch import Tensor

# What a ring may hold instead of the numbers themselves.
STORAGES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def parse_storage(name: str) -> torch.dtype:
    """Return what a window may be held as, by name."""
    if name not in STORAGES:
        raise ValueError(f"unknown storage {name!r}; known are {', '.join(STORAGES)}")
    return STORAGES[name]


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return (B, H, n, D) of x (B, H, T, D), by one index (n,) for all rows or (B, n) for each."""
    if index.ndim == 1:
        return x.index_select(2, index)
    return torch.take_along_dim(x, index[:, None, :, None], dim=2)


def put(x: Tensor, index: Tensor, new: Tensor) -> None:
    """Write new (B, H, n, D) in place to x (B, H, T, D), at `index` (n,) or (B, n)."""
    if index.ndim == 1:
        x.index_copy_(2, index, new.detach())
    else:
        x.scatter_(2, index[:, None, :, None].expand_as(new), new.detach())


class NarrowRing:
    """Keys or values of one layer's window, rounded as they come in.

    8-bit integers carry one float32 scale for each token and head: x = scale * code, the largest |code| 127.

    Args:
        like: (B, Hkv, T, D) for shape, dtype and device.
        n_slots: of the ring.
        storage: what is held, one of `STORAGES`.
    """

    def __init__(self, like: Tensor, n_slots: int, storage: torch.dtype) -> None:
        batch, heads, _, size = like.shape
        self.codes = like.new_zeros(batch, heads, n_slots, size, dtype=storage)
        n_scales = 1 if storage == torch.int8 else 0
        self.scales = like.new_zeros(batch, heads, n_slots, n_scales, dtype=torch.float32)
        self.dtype = like.dtype

    def _pack(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.scales.shape[-1]:
            return x.to(self.codes.dtype), x[..., :0].float()
        scales = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-30) / 127
        return (x / scales).round().to(torch.int8), scales

    def _unpack(self, codes: Tensor, scales: Tensor) -> Tensor:
        return (codes * scales if scales.shape[-1] else codes).to(self.dtype)

    def round(self, x: Tensor) -> Tensor:
        """Return x (B, Hkv, T, D) as it would come back from the ring."""
        return self._unpack(*self._pack(x))

    def put(self, index: Tensor, x: Tensor) -> None:
        """Write x (B, Hkv, n, D) at `index` (n,) or (B, n)."""
        for held, new in zip((self.codes, self.scales), self._pack(x), strict=True):
            put(held, index, new)

    def take(self, index: Tensor) -> Tensor:
        """Return (B, Hkv, n, D) from the places `index` (n,) or (B, n)."""
        return self._unpack(take(self.codes, index), take(self.scales, index))

    def read(self, n_slots: int) -> Tensor:
        """Return the first `n_slots` places, (B, Hkv, n_slots, D)."""
        return self._unpack(self.codes[:, :, :n_slots], self.scales[:, :, :n_slots])

    @torch.inference_mode(False)
    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        rows = rows.to(self.codes.device)
        self.codes, self.scales = self.codes.index_select(0, rows), self.scales.index_select(0, rows)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.codes.nbytes + self.scales.nbytes
