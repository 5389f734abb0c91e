"""Slots read and written by index; and a ring that stores its entries quantised."""

import torch
from torch import Tensor

# What a ring may store instead of the numbers themselves, by name.
KV_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}


def parse_kv_dtype(kv_dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return the type that a window is stored as; None stores it as it comes.

    Raises:
        ValueError: if it is none of `KV_DTYPES`.
    """
    found = KV_DTYPES.get(kv_dtype) if isinstance(kv_dtype, str) else kv_dtype
    if kv_dtype is not None and found not in KV_DTYPES.values():
        raise ValueError(f"kv_dtype must be None, {', '.join(KV_DTYPES)}, got {kv_dtype}")
    return found


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


class QuantizedRing:
    """Keys or values of one layer's window, rounded on arrival.

    8-bit integers carry one float32 scale for each token and head: x = scale * code, the largest |code| 127.

    Args:
        like: (B, Hkv, T, D) for shape, dtype and device.
        n_slots: of the ring.
        kv_dtype: what is stored, one of `KV_DTYPES`.
    """

    def __init__(self, like: Tensor, n_slots: int, kv_dtype: torch.dtype) -> None:
        batch, heads, _, size = like.shape
        self.codes = like.new_zeros(batch, heads, n_slots, size, dtype=kv_dtype)
        n_scales = 1 if kv_dtype == torch.int8 else 0
        self.scales = like.new_zeros(batch, heads, n_slots, n_scales, dtype=torch.float32)
        self.dtype = like.dtype

    def _quantize(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.scales.shape[-1]:
            return x.to(self.codes.dtype), x[..., :0].float()
        scales = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-30) / 127
        return (x / scales).round().to(torch.int8), scales

    def _dequantize(self, codes: Tensor, scales: Tensor) -> Tensor:
        return (codes * scales if scales.shape[-1] else codes).to(self.dtype)

    def round(self, x: Tensor) -> Tensor:
        """Return x (B, Hkv, T, D) as it would come back from the ring."""
        return self._dequantize(*self._quantize(x))

    def put(self, index: Tensor, x: Tensor) -> None:
        """Write x (B, Hkv, n, D) at `index` (n,) or (B, n)."""
        for stored, new in zip((self.codes, self.scales), self._quantize(x), strict=True):
            put(stored, index, new)

    def take(self, index: Tensor) -> Tensor:
        """Return (B, Hkv, n, D) from the slots `index` (n,) or (B, n)."""
        return self._dequantize(take(self.codes, index), take(self.scales, index))

    def read(self, n_slots: int) -> Tensor:
        """Return the first `n_slots` slots, (B, Hkv, n_slots, D)."""
        return self._dequantize(self.codes[:, :, :n_slots], self.scales[:, :, :n_slots])

    @torch.inference_mode(False)
    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order, at the same addresses if their number stays."""
        rows = rows.to(self.codes.device)
        codes, scales = self.codes.index_select(0, rows), self.scales.index_select(0, rows)
        if len(rows) != len(self.codes):
            self.codes, self.scales = codes, scales
            return
        self.codes.copy_(codes)
        self.scales.copy_(scales)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.codes.nbytes + self.scales.nbytes
