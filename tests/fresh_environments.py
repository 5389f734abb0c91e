"""Install the wheel into new environments, and print the table in docs/install.md.

For each Python, once with the pins of envs/requirements.txt and once with the newest torch and transformers:
make an environment, install torch and transformers, then the wheel, and run an example. It is an error if the
wheel changes another package, or if the example is wrong. uv is used if it is there. torch takes gigabytes.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NO_CACHE = {**os.environ, "UV_NO_CACHE": "1", "PIP_NO_CACHE_DIR": "1"}
PINS = Path(__file__).parent.parent / "envs" / "requirements.txt"
CORE = ("numpy", "safetensors", "torch", "tqdm", "transformers")
# Losses in blocks equal those of decoding token by token through the cache, on a small random model.
EXAMPLE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from streamlm import SinkCache, StreamConfig, prepare, score_stream
config = LlamaConfig(vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
                     num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)
torch.manual_seed(0)
ids = torch.randint(97, (200,))
with prepare(LlamaForCausalLM(config).eval()) as model, torch.no_grad():
    losses, cache = score_stream(model, ids.numpy(), StreamConfig(n_sink=4, window_size=28))
    cache = SinkCache(config, n_sink=4, window_size=28)
    logits = torch.cat([model(token.view(1, 1), past_key_values=cache).logits[0] for token in ids])
    made = model.generate(ids[None, :9], past_key_values=SinkCache(config, n_sink=4, window_size=28),
                          min_new_tokens=60, max_new_tokens=60, do_sample=False)
slow = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
assert made.shape == (1, 69) and cache.n_held == 32
print(f"{(torch.from_numpy(losses) - slow).abs().max():.0e}")
"""


def run(*command: object) -> str:
    """Return what a command prints."""
    return subprocess.run(
        [*map(str, command)], check=True, stdout=subprocess.PIPE, text=True, env=NO_CACHE
    ).stdout


class Environment:
    """A new virtual environment; uv makes it if it is there, pip if not."""

    def __init__(self, folder: Path, python: str) -> None:
        self.uv = shutil.which("uv")
        run(*([self.uv, "venv", "--python", python] if self.uv else [python, "-m", "venv"]), folder)
        self.python = folder / "bin" / "python"

    def pip(self, *args: object) -> str:
        """Run a command of pip in it."""
        if self.uv:
            return run(self.uv, "pip", args[0], "--python", self.python, *args[1:])
        return run(self.python, "-m", "pip", *args)

    def packages(self) -> dict[str, str]:
        """Return the version of every package."""
        found = self.pip("list", "--format", "freeze")
        return dict(line.split("==") for line in found.split() if "==" in line)


def main() -> None:
    """Print a row for every environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel")
    parser.add_argument("pythons", nargs="+", metavar="python")
    given = parser.parse_args()
    columns = ("Python", "with", "torch", "transformers", "s for these", "s for the wheel", "changed", "nats")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    pins = re.findall(rf"^(?:{'|'.join(CORE)})==\S+", PINS.read_text(encoding="utf-8"), re.MULTILINE)
    for python in given.pythons:
        version = run(python, "-c", "import platform; print(platform.python_version())").strip()
        for name, wanted in (("the pins", pins), ("the newest", CORE)):
            with tempfile.TemporaryDirectory() as folder:
                environment = Environment(Path(folder) / "env", python)
                begin = time.monotonic()
                environment.pip("install", *wanted)
                middle = time.monotonic()
                before = environment.packages()
                environment.pip("install", given.wheel)
                end = time.monotonic()
                after = environment.packages()
                difference = run(environment.python, "-W", "ignore", "-c", EXAMPLE).strip()
            assert after.pop("streamlm-cache"), "the wheel is not there"
            changed = len(before.items() ^ after.items())
            assert not changed, before.items() ^ after.items()
            assert float(difference) < 1e-4, difference
            print(
                f"| {version} | {name} | {after['torch']} | {after['transformers']} | {middle - begin:.0f} "
                f"| {end - middle:.1f} | {changed} | {difference} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
