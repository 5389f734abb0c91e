"""Rotary positions: rotate queries and keys by a number of positions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """The cosine and sine of some angles, ready to be applied; broadcasts against (B, H, T, R)."""

    cos: Tensor  # (..., T, R)
    sin: Tensor  # (..., T, R)
    interleaved: bool

    def apply(self, x: Tensor) -> Tensor:
        """Return `x` with its first 2R features rotated; the others pass through.

        Feature a_i is paired with b_i: R features further, or the next one when interleaved::

            (a_i, b_i)  ->  (a_i cos_i - b_i sin_i,  b_i cos_i + a_i sin_i)

        Args:
            x: (B, H, T, D), D >= 2R.

        Returns:
            (B, H, T, D), in the dtype of `x`; the arithmetic is that of `cos`.
        """
        cos, sin, n_rotary = self.cos, self.sin, self.cos.shape[-1]
        features = x[..., : 2 * n_rotary]
        if self.interleaved:
            a, b = features[..., ::2], features[..., 1::2]
        else:
            a, b = features[..., :n_rotary], features[..., n_rotary:]
        a, b = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
        rotated = (torch.stack((a, b), dim=-1).flatten(-2),) if self.interleaved else (a, b)
        return torch.cat([*(half.to(x.dtype) for half in rotated), x[..., 2 * n_rotary :]], dim=-1)

    def each_row(self) -> "Rotation":
        """Return the rotation of rows (B, T, R) with an axis for the heads, (B, 1, T, R)."""
        return Rotation(self.cos[:, None], self.sin[:, None], self.interleaved)


@dataclass(frozen=True)
class Rotary:
    """How a model rotates: its frequencies, and which features form a pair."""

    inv_freq: Tensor  # (R,) rad per position
    interleaved: bool = False  # pairs (2i, 2i + 1) as GPT-J has them, instead of (i, i + R)

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
        return Rotation(angles.cos().to(dtype), angles.sin().to(dtype), self.interleaved)

    def to(self, device: torch.device) -> "Rotary":
        """Return the same on another device."""
        return Rotary(self.inv_freq.to(device), self.interleaved)
