"""Which product is fastest for the linear layers of a model, by rows: `python benchmarks/products.py`.

Each way multiplies the same rows with all weights of SmolLM2-135M (random numbers; 538 MB in float32, so that
no cache holds them), in turns, so that a busy machine slows all. Printed are milliseconds, and the ratio to
torch's own `Linear`, median [least, most] over the turns; more is faster. `FastLinear` is what streamlm
uses: on more than eight rows it computes as `Linear` does, so its ratio there shows how far turns differ.
"""

import argparse
import time

import numpy as np
import torch
from torch import Tensor
from torch.utils.mkldnn import MkldnnLinear
from tqdm import tqdm

from streamlm.cache.products import FastLinear
from streamlm.provenance import processor_name

HIDDEN, HEADS, WIDE, LAYERS, VOCAB = 576, 192, 1536, 30, 49_152
SHAPES = [  # (out, in)
    *[(HIDDEN, HIDDEN), (HEADS, HIDDEN), (HEADS, HIDDEN), (HIDDEN, HIDDEN)] * LAYERS,
    *[(WIDE, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE)] * LAYERS,
    (VOCAB, HIDDEN),
]


def split_weight_first(x: Tensor, weight: Tensor, n_blocks: int = 2) -> Tensor:
    """Return x (R, I) times a weight (O, I), as a batch of products of blocks of its rows with x."""
    blocks = weight.unflatten(0, (n_blocks, -1))
    return torch.bmm(blocks, x.t()[None].expand(n_blocks, -1, -1)).flatten(0, 1).t()


def by_layer(layer: torch.nn.Module):
    """Return the product that a layer computes with its own weight."""
    return lambda x, _: layer(x)


def ways(weights: list[Tensor]):
    """Return for each way the product of every weight."""

    def layer_of(kind, weight):
        layer = kind(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return layer

    return {
        "Linear": [by_layer(layer_of(torch.nn.Linear, weight)) for weight in weights],
        "FastLinear": [by_layer(layer_of(FastLinear, weight)) for weight in weights],
        "split, weight first": [split_weight_first] * len(weights),
        "oneDNN": [
            by_layer(MkldnnLinear(layer_of(torch.nn.Linear, weight), weight.dtype)) for weight in weights
        ],
    }


@torch.inference_mode()
def time_once(products, weights, rows) -> float:
    """Return the seconds of all products."""
    start = time.perf_counter()
    for product, weight in zip(products, weights, strict=True):
        product(rows[weight.shape[1]], weight)
    return time.perf_counter() - start


def main() -> None:
    """Print a table for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 128, 256, 1024])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    weights = [torch.randn(shape) / shape[1] ** 0.5 for shape in SHAPES]
    all_ways = ways(weights)
    n_flop = 2 * sum(weight.numel() for weight in weights)
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"all weights of SmolLM2-135M, {sum(w.nbytes for w in weights) / 1e6:.0f} MB")
    for n_rows in args.rows:
        rows = {size: torch.randn(n_rows, size) for size in (HIDDEN, WIDE)}
        expected = [weight.double() @ rows[weight.shape[1]].double().T for weight in weights[:8]]
        for products in all_ways.values():
            for product, weight, right in zip(products, weights, expected, strict=False):
                torch.testing.assert_close(
                    product(rows[weight.shape[1]], weight).double().T, right, rtol=0, atol=1e-4
                )
        repeats = max(3, args.repeats if n_rows < 64 else args.repeats // 2)
        taken = {name: [] for name in all_ways}
        for _ in tqdm(range(repeats + 1), desc=f"{n_rows} rows", leave=False):
            for name, products in all_ways.items():
                taken[name].append(time_once(products, weights, rows))
        print(f"\n{n_rows} rows")
        base = np.array(taken["Linear"][1:])  # the first turn warms up
        for name, seconds in taken.items():
            own = np.array(seconds[1:])
            ratio = base / own
            speed = n_rows * n_flop / np.median(own) / 1e9
            gain = f"{np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]"
            print(f"{name:<20} {1e3 * np.median(own):8.1f} ms {speed:6.0f} GFLOP/s  {gain}")


if __name__ == "__main__":
    main()
