"""Rotary positions: turn queries and keys by a number of positions, in the layout of Llama and GPT-NeoX."""

import torch
from torch import Tensor


def rotation(inv_freq: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the cosine and sine that turn a vector by `positions` places.

    The angles are formed in float64: at position 1,000,000 a float32 angle is wrong by 0.016 rad.
    It is the pure rotation: no attention scaling factor (YaRN, longrope) is in it.

    Args:
        inv_freq: (R,) rotary inverse frequencies in rad per position.
        positions: (T,) whole positions, negative to turn back.
        dtype: of the result.

    Returns:
        two tensors (T, R).

    Source: arXiv:2104.09864, section 3.2.
    """
    angles = positions.double()[:, None] * inv_freq.double()[None, :]  # (T, R), rad
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` with its first 2R features turned; the others pass through.

    Feature i is paired with feature i + R::

        (x_i, x_{i+R})  ->  (x_i cos_i - x_{i+R} sin_i,  x_{i+R} cos_i + x_i sin_i)

    Args:
        x: (B, H, T, D), D >= 2R.
        cos: (T, R).
        sin: (T, R).

    Returns:
        (B, H, T, D), in the dtype of `x`; the arithmetic is that of `cos`.
    """
    half = cos.shape[-1]
    low, high = x[..., :half], x[..., half : 2 * half]
    turned = (low * cos - high * sin, high * cos + low * sin)
    return torch.cat((turned[0].to(x.dtype), turned[1].to(x.dtype), x[..., 2 * half :]), dim=-1)
