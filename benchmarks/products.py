"""Which product is fastest for the linear layers of a model, by rows: `python benchmarks/products.py`.

Each way multiplies the same rows with all weights of SmolLM2-135M (random numbers; 538 MB in float32, so that
no cache holds them), in turns, so that a busy machine slows all. Printed are milliseconds, and the ratio to
torch's own `Linear`, median [min, max] over the turns; more is faster. `FastLinear` is what streamlm uses
where MKL is slow; the others are what it was chosen from. Then attention of one query, by keys, likewise.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.mkldnn import MkldnnLinear
from tqdm import tqdm

from streamlm.cache import attention
from streamlm.cache.products import FastLinear
from streamlm.provenance import processor_name

HIDDEN, HEADS, HEAD, WIDE, LAYERS, VOCAB = 576, 192, 64, 1536, 30, 49_152
SHAPES = [  # (out, in)
    *[(HIDDEN, HIDDEN), (HEADS, HIDDEN), (HEADS, HIDDEN), (HIDDEN, HIDDEN)] * LAYERS,
    *[(WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE)] * LAYERS,
    (VOCAB, HIDDEN),
]


def split_rows_first(x: Tensor, weight: Tensor, n_blocks: int = 16) -> Tensor:
    """Return x (R, I) times a weight (O, I), as a batch of products of x with blocks of its rows."""
    blocks = weight.unflatten(0, (n_blocks, -1)).mT
    return torch.bmm(x.expand(n_blocks, -1, -1), blocks).transpose(0, 1).flatten(1)


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    """Return x (R, I) times a weight (O, I) by oneDNN, on the weight as it lies."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def onednn_packed(weight: Tensor, n_rows: int):
    """Return the product with a copy of the weight that oneDNN has laid out for so many rows."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, n_rows)
    return lambda x, _: onednn(x, packed)


def by_layer(layer: torch.nn.Module):
    """Return the product that a layer computes with its own weight."""
    return lambda x, _: layer(x)


def ways(weights: list[Tensor], n_rows: int):
    """Return for each way the product of every weight."""

    def layer_of(kind, weight):
        layer = kind(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return layer

    return {
        "Linear": [by_layer(layer_of(torch.nn.Linear, weight)) for weight in weights],
        "FastLinear": [by_layer(layer_of(FastLinear, weight)) for weight in weights],
        "split, rows first": [split_rows_first] * len(weights),
        "oneDNN": [onednn] * len(weights),
        "oneDNN, packed": [onednn_packed(weight, n_rows) for weight in weights],
        "MkldnnLinear": [
            by_layer(MkldnnLinear(layer_of(torch.nn.Linear, weight), weight.dtype)) for weight in weights
        ],
    }


def compare(title: str, all_ways: dict, repeats: int, n_flop: float) -> None:
    """Print milliseconds, speed and gain over the first way of functions that are called in turns."""
    taken = {name: [] for name in all_ways}
    for _ in tqdm(range(repeats + 1), desc=title, leave=False):
        for name, run in all_ways.items():
            start = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - start)
    print(f"\n{title}")
    base = np.array(next(iter(taken.values()))[1:])  # the first turn warms up
    for name, seconds in taken.items():
        own = np.array(seconds[1:])
        ratio = base / own
        gain = f"{np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]"
        print(
            f"{name:<20} {1e3 * np.median(own):8.1f} ms {n_flop / np.median(own) / 1e9:6.0f} GFLOP/s  {gain}"
        )


def compare_linears(weights: list[Tensor], n_rows: int, repeats: int) -> None:
    """Compare all ways on so many rows, each checked in float64 first."""
    rows = {size: torch.randn(n_rows, size) for size in (HIDDEN, WIDE)}
    all_ways = ways(weights, n_rows)
    for products in all_ways.values():
        for product, weight in zip(products, weights[:8], strict=False):
            right = rows[weight.shape[1]].double() @ weight.double().T
            torch.testing.assert_close(
                product(rows[weight.shape[1]], weight).double(), right, rtol=0, atol=1e-4
            )

    def run(products) -> None:
        for product, weight in zip(products, weights, strict=True):
            product(rows[weight.shape[1]], weight)

    n_flop = 2 * n_rows * sum(weight.numel() for weight in weights)
    compare(
        f"{n_rows} rows",
        {name: partial(run, products) for name, products in all_ways.items()},
        repeats,
        n_flop,
    )


def compare_attention(n_keys: int, repeats: int) -> None:
    """Compare attention of one query over so many keys, in all layers, by SDPA and by products."""
    q = torch.randn(1, HIDDEN // HEAD, 1, HEAD)
    k, v = torch.randn(2, LAYERS, 1, HEADS // HEAD, n_keys, HEAD)

    def run(limit: float) -> None:
        attention.MANY_KEYS = limit
        for keys, values in zip(k, v, strict=True):
            attention.attend_one(q, keys, values, None, HEAD**-0.5)

    both = {"SDPA": partial(run, torch.inf), "products": partial(run, 0)}
    compare(f"one query, {n_keys} keys", both, repeats, 4 * LAYERS * q.numel() * n_keys)


@torch.inference_mode()
def main() -> None:
    """Print a table for each number of rows, and of keys."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6, 8, 16, 128, 256, 1024])
    parser.add_argument("--keys", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    weights = [torch.randn(shape) / shape[1] ** 0.5 for shape in SHAPES]
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"all weights of SmolLM2-135M, {sum(w.nbytes for w in weights) / 1e6:.0f} MB")
    for n_rows in args.rows:
        compare_linears(weights, n_rows, max(3, args.repeats if n_rows < 64 else args.repeats // 2))
    for n_keys in args.keys:
        compare_attention(n_keys, args.repeats)


if __name__ == "__main__":
    main()
