"""The PyPI package `attention-sinks`, stepped by `decoding.py` from an environment of its own.

Reads one JSON command per line and answers each with one line; between commands it uses no processor time.

    {"do": "load", "window": R}     the model with 4 sinks and the last R tokens, an empty cache
    {"do": "fill", "stop": n}       the tokens before n, in one pass
    {"do": "steps", "count": n}     the next n tokens one by one; answers milliseconds per token
    {"do": "losses", "count": n}    the same; answers the loss of each token that follows, nats
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from attention_sinks import AutoModelForCausalLM


def old_config(folder, target):
    """Lay out the model folder for transformers 4.34, which looks for `rope_theta` at the top."""
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    (target / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.safetensors*"):
        (target / file.name).symlink_to(file.resolve())


class Stepper:
    """A model, its cache and a position in the stream."""

    def __init__(self, folder, stream, window):
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, attention_sink_size=4, attention_sink_window_size=window, torch_dtype=torch.float32
        ).eval()
        self.stream, self.cache, self.position = stream, None, 0

    def forward(self, count):
        ids = self.stream[:, self.position : self.position + count]
        out = self.model(ids, past_key_values=self.cache, use_cache=True)
        self.cache, self.position = out.past_key_values, self.position + count
        return out.logits[:, -1]

    def steps(self, count):
        begin = time.perf_counter()
        for _ in range(count):
            self.forward(1).argmax(-1)
        return 1e3 * (time.perf_counter() - begin) / count

    def losses(self, count):
        losses = []
        for _ in range(count):
            logits = self.forward(1)
            losses.append(torch.nn.functional.cross_entropy(logits, self.stream[:, self.position]).item())
        return losses


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stream = torch.from_numpy(np.load(options.tokens))[None]
    answers, sys.stdout = sys.stdout, sys.stderr  # the package prints
    with tempfile.TemporaryDirectory() as folder:
        old_config(options.model, Path(folder))
        for line in sys.stdin:
            command = json.loads(line)
            if command["do"] == "load":
                stepper, answer = Stepper(folder, stream, command["window"]), None
            elif command["do"] == "fill":
                stepper.forward(command["stop"])
                answer = None
            else:
                answer = getattr(stepper, command["do"])(command["count"])
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
