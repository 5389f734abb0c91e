"""Whether a decoder is exact with our cache, against the oracle; and docs/models.md, which says so of all.

python tests/judge.py judge > FILE           one JSON document, of the transformers that is installed
python tests/judge.py page FILE... > docs/models.md
"""

import json
import random
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from families import VOCAB, build, every_family
from oracle import oracle_logits

from streamlm.cache.prepare import prepare
from streamlm.cache.probe import describe_rotations
from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.supported import layer_windows
from streamlm.config import StreamConfig
from streamlm.measure.scoring import score_stream

N_TOKENS = 28


@dataclass
class Judgement:
    family: str
    layers: str = ""
    rotation: str = ""
    nats: float | None = None  # the largest difference of a loss to the oracle's
    refused: str = ""


def drawn(name, count):
    """Geometries below, at and above the own windows of 6 tokens; chunks; with and without rebases."""
    draw = random.Random(name)
    for capacity in draw.sample([4, 6, 9, 13, 20], count):
        n_sink = draw.randrange(0, min(4, capacity))
        cfg = StreamConfig(n_sink=n_sink, window_size=capacity - n_sink)
        yield cfg, draw.randint(1, 9), draw.choice([0, 10**6])


def ids_of(name, n_tokens=N_TOKENS):
    return torch.randint(VOCAB, (n_tokens,), generator=torch.Generator().manual_seed(len(name)))


def nats(logits, ids):
    """Return the losses (T-1,) of logits (T, V) of ids (T,)."""
    return -logits[:-1].double().log_softmax(-1).gather(1, ids[1:, None])[:, 0]


def losses_of(model, ids, cfg, chunk, limit):
    """Return the losses of a stream: half in chunks through the model's own forward, half token by token."""
    cache = SinkCache(model.config, cfg.n_sink, cfg.window_size, position_limit=limit)
    half, chunk = len(ids) // 2, cache.longest_pass(chunk)
    parts = [*ids[None, :half].split(chunk, 1), *ids[None, half:].split(1, 1)]
    return nats(torch.cat([model(part, past_key_values=cache).logits[0] for part in parts]), ids)


def judge(name, model, count=2):
    """Compare a model with the oracle on `count` drawn geometries; ValueError of one line refuses it."""
    try:
        with prepare(model):
            rotation = describe_rotations(model)
    except ValueError as error:
        return Judgement(name, refused=str(error))
    ids, windows, apart = ids_of(name), layer_windows(model.config), 0.0
    kinds = Counter("full" if window is None else f"sliding ({window})" for window in windows.values())
    if stateful := model.config.get_text_config(decoder=True).num_hidden_layers - len(windows):
        kinds["with a fixed state"] = stateful
    for cfg, chunk, limit in drawn(name, count):
        slow = nats(oracle_logits(model, ids, windows, cfg.n_sink, cfg.window_size), ids)
        with prepare(model), torch.inference_mode():
            fast = losses_of(model, ids, cfg, chunk, limit)
            scored, _ = score_stream(model, ids.numpy(), cfg, chunk=chunk, position_limit=limit)
        for losses in (fast, torch.from_numpy(scored).double()):
            apart = max(apart, float((losses - slow).abs().max()))
    return Judgement(name, ", ".join(f"{n} {kind}" for kind, n in kinds.items()), rotation, apart)


def judge_all():
    """Return a judgement of every family that can be built small, and why the others cannot."""
    transformers.logging.set_verbosity_error()
    judged, unbuilt = [], {}
    for name in every_family():
        try:
            model = build(name)
        except Exception as error:  # of any config and any model
            unbuilt[name] = type(error).__name__
            continue
        judged.append(asdict(judge(name, model, 5)))
    return {"transformers": transformers.__version__, "judged": judged, "unbuilt": unbuilt}


HEAD = """# Models

Which decoders of transformers `SinkCache` is exact for. Each was built small, with random weights,
and its losses were compared with an implementation that decodes token by token on the model's own
code (`tests/oracle.py`): below, at and above the windows of its own layers, in chunks and by single
tokens, with and without moving the stream back to small positions. *Exact* is a difference of less
than 0.001 nats in every token, in float32. A model that is not exact is refused when it is loaded,
with the reason. `make models` makes this page; `streamlm info --model-name MODEL` says the same of
one model, from its weights. A word after the name is a variant.
"""


def page(documents):
    """Return docs/models.md from the documents of `judge_all`, one for each version of transformers."""
    by_name = {}
    for document in documents:
        for judged in document["judged"]:
            by_name.setdefault(judged["family"], {})[document["transformers"]] = judged
    versions = [document["transformers"] for document in documents]
    exact = {name: found for name, found in by_name.items() if any(not j["refused"] for j in found.values())}
    lines = [HEAD]
    for version in versions:
        every = [found[version] for found in by_name.values() if version in found]
        n_exact = sum(not judged["refused"] for judged in every)
        lines.append(f"- transformers {version}: {n_exact} exact, {len(every) - n_exact} refused.")
    lines += ["", "## Exact", ""]
    lines += [
        "| family | layers | how they rotate | " + " | ".join(f"nats apart, {v}" for v in versions) + " |"
    ]
    lines += ["|---" * (3 + len(versions)) + "|"]
    for name, found in sorted(exact.items()):
        shown = next(judged for judged in found.values() if not judged["refused"])
        cells = [_apart(found.get(version)) for version in versions]
        lines.append(f"| {name} | {shown['layers']} | {shown['rotation']} | {' | '.join(cells)} |")
    lines += ["", "## Refused", "", "| family | why |", "|---|---|"]
    for name, found in sorted(by_name.items()):
        if name not in exact:
            reason = next(iter(found.values()))["refused"].partition("; supported are")[0]
            lines.append(f"| {name} | {reason} |")
    return "\n".join(lines) + "\n"


def _apart(judged):
    if judged is None:
        return "not there"
    return "refused" if judged["refused"] else f"{judged['nats']:.0e}"


if __name__ == "__main__":
    if sys.argv[1] == "judge":
        print(json.dumps(judge_all(), indent=1))
    else:
        print(page([json.loads(Path(file).read_text()) for file in sys.argv[2:]]), end="")
