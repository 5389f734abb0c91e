"""Rotary positions: rotate queries and keys by a number of positions."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """The cosine and sine of some angles, ready to be applied; broadcasts against (B, H, T, R)."""

    cos: Tensor  # (..., T, R)
    sin: Tensor  # (..., T, R)
    interleaved: bool
    first: int = 0  # of the features that rotate

    def apply(self, x: Tensor) -> Tensor:
        """Return `x` with its features `first` to `first` + 2R - 1 rotated; the others pass through.

        Feature a_i is paired with b_i: R features further, or the next one when interleaved::

            (a_i, b_i)  ->  (a_i cos_i - b_i sin_i,  b_i cos_i + a_i sin_i)

        Args:
            x: (B, H, T, D), D >= `first` + 2R.

        Returns:
            (B, H, T, D), in the dtype of `x`; the arithmetic is that of `cos`.
        """
        cos, sin, n_rotary, first = self.cos, self.sin, self.cos.shape[-1], self.first
        before, features, after = x.tensor_split((first, first + 2 * n_rotary), dim=-1)
        if self.interleaved:
            a, b = features[..., ::2], features[..., 1::2]
        else:
            a, b = features[..., :n_rotary], features[..., n_rotary:]
        a, b = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
        rotated = (torch.stack((a, b), dim=-1).flatten(-2),) if self.interleaved else (a, b)
        return torch.cat([before, *(part.to(x.dtype) for part in rotated), after], dim=-1)

    def each_row(self) -> "Rotation":
        """Return the rotation of rows (B, T, R) with an axis for the heads, (B, 1, T, R)."""
        return replace(self, cos=self.cos[:, None], sin=self.sin[:, None])


@dataclass(frozen=True, eq=False)
class Rotary:
    """How a layer rotates: its frequencies, which features it rotates, and which of them form a pair."""

    inv_freq: Tensor  # (R,) rad per position; negative where a model rotates the other way
    interleaved: bool = False  # pairs (2i, 2i + 1) as GPT-J has them, instead of (i, i + R)
    first: int = 0  # of the features that rotate: 0, or D - 2R where they are the last ones
    # Whether what rotates of the keys is stored by itself, as values, beside latents (DeepSeek from 5.24 on).
    is_apart: bool = False

    @property
    def of_stored(self) -> "Rotary":
        """How what is stored of the keys rotates."""
        return replace(self, first=0) if self.is_apart else self

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two features of each pair that rotates, (B, H, T, R) each, of x (B, H, T, D)."""
        features = x[..., self.first : self.first + 2 * len(self.inv_freq)]
        if self.interleaved:
            return features[..., ::2], features[..., 1::2]
        first, second = features.chunk(2, dim=-1)
        return first, second

    def by(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Return the rotation by a number of positions.

        The angles are formed in float64: at position 1,000,000 a float32 angle is wrong by 0.016 rad.
        It is the pure rotation: no attention scaling factor (YaRN, longrope) is in it.

        Args:
            positions: (..., T) whole positions, negative to rotate back.
            dtype: of the result.

        Source: arXiv:2104.09864, section 3.2.
        """
        angles = positions.double()[..., None] * self.inv_freq.double()  # (..., T, R), rad
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), self.interleaved, self.first)

    def to(self, device: torch.device) -> "Rotary":
        """Return the same on a device; it is copied to another one only once."""
        return self if device == self.inv_freq.device else _copied(self, device)


@lru_cache
def _copied(rotary: Rotary, device: torch.device) -> Rotary:
    return replace(rotary, inv_freq=rotary.inv_freq.to(device))
