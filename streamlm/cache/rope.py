"""Rotary positions: turn queries and keys by a number of positions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotary:
    """How a model rotates: frequencies, and which features form a pair."""

    inv_freq: Tensor  # (R,) rad per position
    interleaved: bool = False  # pairs (2i, 2i + 1) as GPT-J has them, instead of (i, i + R)


def rotation(inv_freq: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine that turn a vector by `positions` places.

    The angles are formed in float64: at position 1,000,000 a float32 angle is wrong by 0.016 rad.
    It is the pure rotation: no attention scaling factor (YaRN, longrope) is in it.

    Args:
        inv_freq: (R,) rotary inverse frequencies in rad per position.
        positions: (..., T) whole positions, negative to turn back.
        dtype: of the result.

    Returns:
        two tensors (..., T, R).

    Source: arXiv:2104.09864, section 3.2.
    """
    angles = positions.double()[..., None] * inv_freq.double()  # (..., T, R), rad
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Return `x` with its first 2R features turned; the others pass through.

    Feature a_i is paired with b_i, which stands R places behind it, or next to it when interleaved::

        (a_i, b_i)  ->  (a_i cos_i - b_i sin_i,  b_i cos_i + a_i sin_i)

    Args:
        x: (B, H, T, D), D >= 2R.
        cos: (T, R), or anything that broadcasts against (B, H, T, R).
        sin: like `cos`.
        interleaved: see `Rotary`.

    Returns:
        (B, H, T, D), in the dtype of `x`; the arithmetic is that of `cos`.
    """
    n_rotary = cos.shape[-1]
    turning = x[..., : 2 * n_rotary]
    if interleaved:
        a, b = turning[..., ::2], turning[..., 1::2]
    else:
        a, b = turning[..., :n_rotary], turning[..., n_rotary:]
    a, b = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
    turned = (torch.stack((a, b), dim=-1).flatten(-2),) if interleaved else (a, b)
    return torch.cat([*(part.to(x.dtype) for part in turned), x[..., 2 * n_rotary :]], dim=-1)
