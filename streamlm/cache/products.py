"""Products with a matrix on processors that MKL computes slowly for: those of other makers than Intel.

torch's builds for x86 multiply float32 with MKL. On an AMD EPYC (oneMKL 2024.2) that takes AVX2 where the
processor has AVX-512, and one thread for one row. oneDNN, which torch carries too, takes what the processor
has; and a batch of products of a few rows takes all threads. benchmarks/products.txt has what each gains.
"""

import math

import torch
from torch import Tensor, nn

from streamlm.provenance import processor_maker

FEW_ROWS = 4  # tokens of all rows of a batch; beyond, oneDNN is faster
MANY_OUTPUTS = 2**15  # of one head; with fewer, a call of oneDNN costs more than it gains
LARGE_BYTES = 2**25  # glibc gives larger blocks back to the system, which clears every page of the next one
BLOCKS = 16  # of a weight's rows; more threads than these find no work


def mkl_is_slow() -> bool:
    """Return whether torch multiplies with MKL, on a processor of a known maker other than Intel.

    Only where torch carries oneDNN too.
    """
    return (
        torch.backends.mkl.is_available()
        and processor_maker() not in ("GenuineIntel", "")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


# As torch.compiler.assume_constant_result marks it, which imports the compiler, half a second: what it reads
# must not be traced.
mkl_is_slow._dynamo_marked_constant = True  # type: ignore[attr-defined]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x (..., I) times the weight (O, I), plus the bias (O,): (..., O).

    It is the same arithmetic as torch's: every output is the product of one row of `x` and one of the weight.
    """
    n_rows = x.numel() // weight.shape[1]
    if n_rows <= FEW_ROWS and _is_plain(x, weight):
        return _few_rows(x, n_rows, weight, bias)
    if _onednn_takes(x, weight):
        # Private, since the public MkldnnLinear copies weights and rows: 1.1 to 1.3 times the time.
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return nn.functional.linear(x, weight, bias)


def one_by_one(x: Tensor, weights: Tensor, n_outputs: int) -> bool:
    """Return whether products of x (B, H, T, I) are faster a head at a time, with so many outputs each."""
    is_large = n_outputs * weights.shape[:2].numel() * x.element_size() >= LARGE_BYTES
    return x.device.type == "cpu" and (is_large or _onednn_is_faster(x, weights, n_outputs))


def batched_linear(x: Tensor, weights: Tensor) -> Tensor:
    """Return each of x (B, H, T, I) times its own weight of (B, H, O, I): (B, H, T, O)."""
    if weights.shape[:2] == (1, 1) and _onednn_is_faster(x, weights, x.shape[2] * weights.shape[2]):
        return linear(x, weights[0, 0])
    return x @ weights.mT


def _onednn_is_faster(x: Tensor, weights: Tensor, n_outputs: int) -> bool:
    return mkl_is_slow() and n_outputs >= MANY_OUTPUTS and _onednn_takes(x, weights)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """Return whether this is a product on the CPU that MKL would compute, in the number type of both."""
    is_mkls = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    return is_mkls and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")


def _onednn_takes(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN computes this product: without gradients, and in float32 only."""
    has_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return x.dtype == torch.float32 and _is_plain(x, weight) and not has_gradient


def _few_rows(x: Tensor, n_rows: int, weight: Tensor, bias: Tensor | None) -> Tensor:
    n_out, n_in = weight.shape
    n_blocks = math.gcd(n_out, BLOCKS)
    # The strides decide: with those of x.view(1, -1, 1), one row takes four times as long.
    rows = x.reshape(n_rows, n_in).t().expand(n_blocks, -1, -1)  # (n_blocks, I, n_rows)
    out = torch.bmm(weight.view(n_blocks, -1, n_in), rows)  # (n_blocks, O/n_blocks, n_rows)
    out = out.view(n_out, n_rows).t().view(*x.shape[:-1], n_out)
    return out if bias is None else out + bias


class FastLinear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x (..., I) times the weight (O, I), plus the bias: (..., O)."""
        return linear(x, self.weight, self.bias)


def use_fast_linears(model: nn.Module) -> None:
    """Let the linear layers of `model` compute by `linear`, where MKL is slow.

    The layers stay the same modules with the same weights; classes derived from `nn.Linear` are left alone.
    """
    if mkl_is_slow():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = FastLinear


def products_of(model: nn.Module) -> str:
    """Return how the linear layers of a model are computed, for its records."""
    weights = [module.weight for module in model.modules() if isinstance(module, FastLinear)]
    if weights and weights[0].dtype == torch.float32 and weights[0].device.type == "cpu":
        return f"oneDNN; up to {FEW_ROWS} rows as a batch of row blocks of the weight"
    return "as torch chooses"
