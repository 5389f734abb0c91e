"""Estimate what the paper's long streams would cost with this harness: `python benchmarks/cost.py`.

Arithmetic from the shapes of the models, scaled by the throughput in benchmarks/scoring.txt for the machine
that was measured there, and by data sheets for GPUs: nothing here was run on one. docs/cost.md reads the
tables.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

SCORING = Path(__file__).with_name("scoring.txt")
N_TOKENS = 4_000_000
BYTES = 2  # of a bfloat16
N_SINK = 4
QUERY_BLOCK = 128  # streamlm.cache.attention.QUERY_BLOCK
KEEP_EVERY = 8_192  # tokens between two checkpoints, streamlm.measure.perplexity.KEEP_EVERY
WORKSPACE = 1e9  # bytes of a pass of 1,024 tokens, without weights and cache, assumed
USED = 0.4  # share of a GPU's peak that matrix products reach, assumed
# Moved per head, query and key by streamlm.cache.attention.attend: products, mask, softmax in float32.
SCORE_BYTES = 24


@dataclass(frozen=True)
class Model:
    """Shape of a decoder."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    mlp_matrices: int  # 3 if gated
    vocab: int
    embeddings: int = 2  # 1 where input and output share it
    capacity: int = 1024  # tokens held: half the trained length, as in the paper's long streams

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def params(self) -> int:
        """Count the matrices; norms and biases are less than a thousandth."""
        attention = self.hidden * self.hidden * 2 * (1 + self.kv_heads / self.heads)
        block = attention + self.mlp_matrices * self.hidden * self.mlp
        return int(self.layers * block) + self.embeddings * self.embedding

    @property
    def keys(self) -> int:
        """Count the keys that a block of queries is multiplied with, those hidden from most included."""
        return self.capacity + QUERY_BLOCK - 1

    @property
    def flops(self) -> float:
        """Count the floating-point operations of a scored token: two per weight used, and attention."""
        looked_up = (self.embeddings - 1) * self.embedding
        sinks = 2 * self.layers * self.hidden * N_SINK  # once more, from the query rotated back to them
        return 2 * (self.params - looked_up) + 4 * self.layers * self.hidden * self.keys + sinks

    @property
    def kv_token_bytes(self) -> float:
        """Return the bytes of keys and values of one token, over all layers."""
        return 2 * BYTES * self.layers * self.hidden * self.kv_heads / self.heads

    @property
    def cache_bytes(self) -> float:
        return self.capacity * self.kv_token_bytes

    @property
    def weight_bytes(self) -> int:
        return BYTES * self.params

    @property
    def resident_bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes + WORKSPACE


@dataclass(frozen=True)
class Gpu:
    """Figures of a data sheet."""

    name: str
    peak: float  # floating-point operations a second, dense bfloat16
    bandwidth: float  # bytes a second
    memory: float  # bytes

    def seconds(self, model: Model) -> float:
        """Return the time of a token scored in blocks."""
        scores = SCORE_BYTES * model.layers * model.heads * model.keys
        return model.flops / (USED * self.peak) + scores / self.bandwidth

    def least_step_seconds(self, model: Model) -> float:
        """Return the least time of a token decoded by itself: weights and cache are read once."""
        return (model.weight_bytes + model.cache_bytes) / self.bandwidth

    def count(self, model: Model) -> int:
        """Return how many of them hold the model."""
        return math.ceil(model.resident_bytes / self.memory)


MEASURED = Model("SmolLM2-135M", 30, 576, 9, 3, 1536, 3, 49_152, embeddings=1, capacity=512)
PAPER = (
    Model("Pythia-2.8B", 32, 2560, 32, 32, 10_240, 2, 50_304),
    Model("Pythia-6.9B", 32, 4096, 32, 32, 16_384, 2, 50_432),
    Model("Pythia-12B", 36, 5120, 40, 40, 20_480, 2, 50_688),
    Model("Llama-2-7B", 32, 4096, 32, 32, 11_008, 3, 32_000, capacity=2048),
    Model("Llama-2-70B", 80, 8192, 64, 8, 28_672, 3, 32_000, capacity=2048),
)
A100 = Gpu("A100 80 GB", peak=312e12, bandwidth=2.04e12, memory=80e9)
H100 = Gpu("H100 80 GB", peak=989e12, bandwidth=3.35e12, memory=80e9)


def measured_rate(text: str) -> float:
    """Return the tokens a second of the long bfloat16 stream in the output of benchmarks/scoring.py.

    Raises:
        ValueError: if the output is of another model, geometry or number type than `MEASURED`.
    """
    rate = re.search(r"^whole: ([\d.]+) tokens/s", text, re.MULTILINE)
    if not rate or "smollm2-135m-instruct, 4+508;" not in text or "tokens in bfloat16, in" not in text:
        raise ValueError(
            "benchmarks/scoring.txt must hold a long bfloat16 stream of SmolLM2-135M with 4+508; "
            "make it with `python benchmarks/scoring.py --long 500000 --long-dtype bfloat16`"
        )
    return float(rate[1])


MEMORY: dict[str, Callable[[Model], str]] = {
    "model": lambda m: m.name,
    "params, 1e9": lambda m: f"{m.params / 1e9:.2f}",
    "weights, GB": lambda m: f"{m.weight_bytes / 1e9:.1f}",
    "held": lambda m: f"{m.capacity}",
    "KV of a token, kB": lambda m: f"{m.kv_token_bytes / 1e3:.0f}",
    "KV held, GB": lambda m: f"{m.cache_bytes / 1e9:.2f}",
    "KV of all tokens, GB": lambda m: f"{N_TOKENS * m.kv_token_bytes / 1e9:,.0f}",
    "in all, GB": lambda m: f"{m.resident_bytes / 1e9:.1f}",
    "80 GB GPUs": lambda m: f"{A100.count(m)}",
}
DISK: dict[str, Callable[[Model], str]] = {
    "model": lambda m: m.name,
    "tokens/s": lambda m: f"{1 / H100.seconds(m):,.0f}",
    "checkpoint, GB": lambda m: f"{m.cache_bytes / 1e9:.2f}",
    "s between two": lambda m: f"{KEEP_EVERY * H100.seconds(m):.2f}",
    "GB/s": lambda m: f"{m.cache_bytes / KEEP_EVERY / H100.seconds(m) / 1e9:.1f}",
    "written in all, GB": lambda m: f"{m.cache_bytes * (N_TOKENS // KEEP_EVERY) / 1e9:,.0f}",
    "weights at 1 GB/s, s": lambda m: f"{m.weight_bytes / 1e9:.0f}",
    "400,000 tokens, s": lambda m: f"{400_000 * H100.seconds(m):.0f}",
}


def time_columns(machine_flops: float) -> dict[str, Callable[[Model], str]]:
    """Return the columns of the times; `machine_flops` are those a second of the measured machine."""
    days, hours, minutes = (N_TOKENS / seconds for seconds in (86_400, 3_600, 60))
    return {
        "model": lambda m: m.name,
        "GFLOP a token": lambda m: f"{m.flops / 1e9:.1f}",
        "measured machine, days": lambda m: f"{days * m.flops / machine_flops:.1f}",
        "A100, min": lambda m: f"{minutes * A100.seconds(m):.1f}",
        "H100, min": lambda m: f"{minutes * H100.seconds(m):.1f}",
        "A100 by token, h": lambda m: f">= {hours * A100.least_step_seconds(m):.1f}",
        "H100 by token, h": lambda m: f">= {hours * H100.least_step_seconds(m):.1f}",
    }


def table(columns: dict[str, Callable[[Model], str]]) -> str:
    """Return a Markdown table, a model a row."""
    rows = [[show(model) for show in columns.values()] for model in PAPER]
    return tabulate(rows, list(columns), "github", disable_numparse=True)


def cluster_line(gpu: Gpu) -> str:
    """Return what the streams take one after the other, and all at once."""
    hours = {model: N_TOKENS / 3600 * gpu.seconds(model) for model in PAPER}
    alone = sum(time for model, time in hours.items() if gpu.count(model) == 1)
    busy = sum(time * gpu.count(model) for model, time in hours.items())
    return (
        f"{gpu.name}: {alone:.1f} h for those that one GPU holds, one after the other; "
        f"all at once on {sum(map(gpu.count, PAPER))} GPUs {max(hours.values()):.1f} h, {busy:.1f} GPU-hours"
    )


def main() -> None:
    measured = SCORING.read_text(encoding="utf-8")
    rate = measured_rate(measured)
    machine_flops = rate * MEASURED.flops
    print(f"One stream of {N_TOKENS:,} tokens a model, in bfloat16, scored in blocks.")
    print(
        f"Measured ({measured.partition(', torch')[0]}; benchmarks/scoring.txt): {rate:.0f} tokens/s of "
        f"{MEASURED.name}, {MEASURED.flops / 1e9:.2f} GFLOP a token: {machine_flops / 1e9:.0f} GFLOP/s."
    )
    for gpu in (A100, H100):
        print(
            f"{gpu.name}, not run: {USED:.0%} of {gpu.peak / 1e12:.0f} TFLOP/s assumed, and "
            f"{SCORE_BYTES} bytes a score at {gpu.bandwidth / 1e12:.2f} TB/s."
        )
    print(f"\nMemory:\n\n{table(MEMORY)}\n")
    print(f"Time of one stream:\n\n{table(time_columns(machine_flops))}\n")
    print(f"{cluster_line(A100)}\n{cluster_line(H100)}\n")
    print(f"On an H100, with a checkpoint every {KEEP_EVERY:,} tokens:\n\n{table(DISK)}")


if __name__ == "__main__":
    main()
