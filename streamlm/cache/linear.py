"""Linear layers on few rows, such as one token's: all threads for what MKL computes on one."""

import math

import torch
from torch import Tensor, nn

FEW_ROWS = 8  # tokens of all rows of a batch; beyond, splitting gains little
BLOCKS = 16  # of a weight's rows; more threads than these find no work


class SplitLinear(nn.Linear):
    """`nn.Linear`, which computes few rows as a batch of products with blocks of the weight.

    MKL multiplies a matrix by a vector or a few on one thread, and a batch of such products on all (seen with
    oneMKL 2024.2 on an AMD EPYC; benchmarks/decoding.txt has what it gains). It is the same arithmetic: every
    output is the product of one row of the weight.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., I) times the weight (O, I), plus the bias: (..., O)."""
        n_rows = x.numel() // self.in_features
        if n_rows > FEW_ROWS or x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return super().forward(x)
        n_blocks = math.gcd(self.out_features, BLOCKS)
        rows = x.reshape(1, n_rows, self.in_features).expand(n_blocks, -1, -1)
        blocks = self.weight.unflatten(0, (n_blocks, -1)).mT  # (n_blocks, I, O/n_blocks)
        out = torch.bmm(rows, blocks).transpose(0, 1).reshape(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def split_linears(model: nn.Module) -> None:
    """Let the linear layers of `model` compute few rows on all threads, where torch computes with MKL.

    The layers stay the same modules with the same weights; classes derived from `nn.Linear` are left alone.
    """
    if torch.backends.mkl.is_available():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = SplitLinear
