"""Training of a twin: deterministic, and resumable after a kill."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn import functional
from transformers import PreTrainedModel

from streamlm.config import Compute
from streamlm.input_files import check_regular
from streamlm.limits import CHECKPOINT_BYTES
from streamlm.measure.device import choose_device, device_name, use_threads
from streamlm.measure.progress import progress
from streamlm.pretrain.twins import SINK, TwinShape, new_twin
from streamlm.provenance import describe_environment
from streamlm.records.files import atomic_path, hash_ids
from streamlm.records.paper import TrainingRecord

WARMUP = 50  # steps over which the learning rate rises
FLOOR = 0.1  # of the learning rate, at the end of its cosine
KEEP_EVERY = 50  # steps between two checkpoints
PART = 20  # steps in the mean of one point of a record


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a twin is trained: AdamW, betas 0.9 and 0.95, weight decay 0.1, gradients clipped to 1."""

    steps: int
    batch: int  # contexts per step, from anywhere in the texts
    learning_rate: float  # the highest


def train_twin(
    *,
    twin: str,
    shape: TwinShape,
    cfg: Training,
    text: np.ndarray,
    dataset: str,
    seed: int,
    compute: Compute,
    checkpoint: Path | str | None = None,
) -> tuple[TrainingRecord, PreTrainedModel]:
    """Return a trained twin and the record of its training; the number type is float32 in any case.

    Args:
        twin: a name in `config.TWINS`.
        shape: of the model.
        cfg: of the training.
        text: (N,) uint8 bytes to train on.
        dataset: true name of the text.
        seed: of the weights, and of what is read.
        compute: device and threads.
        checkpoint: see `train`.

    Raises:
        ValueError: see `train`.
    """
    use_threads(compute.torch_threads)
    device = choose_device(compute.device)
    model = new_twin(twin, shape, seed).to(device)
    with progress(cfg.steps, "step") as bar:
        losses = train(model, twin, shape, cfg, text, seed, checkpoint=checkpoint, on_step=bar.update)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = [losses[start : start + PART] for start in range(0, len(losses), PART)]
    record: TrainingRecord = {
        "model": f"Llama of {n_parameters:,} parameters, trained here on bytes",
        "twin": twin,
        "seed": seed,
        "parameters": n_parameters,
        "dataset": dataset,
        "shape": asdict(shape),
        "training": asdict(cfg),
        "tokens": {"count": len(text), "sha256": hash_ids(text.astype(np.int64))},
        "part": PART,
        "nll_nats": [float(part.mean(dtype=np.float64)) for part in parts],
        "environment": {
            **describe_environment(__file__),  # type: ignore[typeddict-item]
            "device": device_name(device),
            "dtype": "float32",
            "torch_threads": torch.get_num_threads(),
            "seed": seed,
        },
    }
    return record, model


def train(
    model: PreTrainedModel,
    twin: str,
    shape: TwinShape,
    cfg: Training,
    text: np.ndarray,
    seed: int,
    *,
    checkpoint: Path | str | None = None,
    on_step: Callable[[], object] | None = None,
) -> np.ndarray:
    """Train a new twin in place; return the loss of every step, (steps,) float32 in nats per byte.

    Twins of one seed read the same bytes in the same order. On one CPU, with as many threads, two runs end in
    the same weights, bit for bit, also when one was killed between.

    Args:
        model: of `new_twin`.
        twin: a name in `config.TWINS`.
        shape: of the model.
        cfg: of the training.
        text: (N,) uint8 bytes to train on.
        seed: of what is read.
        checkpoint: file to keep the state in, and to continue from; the caller removes it.
        on_step: called after each step.

    Raises:
        ValueError: if the text is shorter than a context, the checkpoint is damaged, or a loss is not finite.
    """
    if len(text) <= shape.context_tokens:
        raise ValueError(f"{len(text)} bytes are no context of {shape.context_tokens}; take more text")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    losses = np.empty(cfg.steps, np.float32)
    identity = json.dumps(
        {"twin": twin, "shape": asdict(shape), "training": asdict(cfg), "seed": seed}
        | {"text": hashlib.sha256(text.tobytes()).hexdigest(), **describe_environment(__file__)}
        | {"device": str(model.device), "threads": torch.get_num_threads()}
    )
    done = 0 if checkpoint is None else _restore(Path(checkpoint), identity, model, optimizer, losses)
    for step in range(done, cfg.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, cfg)
        rows = draw_batch(twin, shape, cfg, text, seed, step).to(model.device)
        losses[step] = loss = _step(model, optimizer, rows)
        if not math.isfinite(loss):
            raise ValueError(f"the loss of step {step + 1} is not finite; take a smaller learning_rate")
        if on_step is not None:
            on_step()
        if checkpoint is not None and (step + 1) % KEEP_EVERY == 0:
            _keep(Path(checkpoint), identity, model, optimizer, losses[: step + 1])
    model.eval()
    return losses


def learning_rate(step: int, cfg: Training) -> float:
    """Return the learning rate of a step: a rise, then half a cosine."""
    cosine = (1 + math.cos(math.pi * step / cfg.steps)) / 2
    return cfg.learning_rate * min(1, (step + 1) / WARMUP) * (FLOOR + (1 - FLOOR) * cosine)


def draw_batch(
    twin: str, shape: TwinShape, cfg: Training, text: np.ndarray, seed: int, step: int
) -> torch.Tensor:
    """Return what one step reads, (batch, context_tokens + 1): the last byte is a target only.

    A sink token takes the place of the first byte, so that the targets of all twins are the same bytes.
    """
    starts = np.random.default_rng((seed, step)).integers(0, len(text) - shape.context_tokens, cfg.batch)
    rows = text[starts[:, None] + np.arange(shape.context_tokens + 1)].astype(np.int64)
    if twin == "sink_token":
        rows[:, 0] = SINK
    return torch.from_numpy(rows)


def _step(model: PreTrainedModel, optimizer: torch.optim.Optimizer, rows: torch.Tensor) -> float:
    """Learn from rows (B, T + 1); return their mean loss."""
    logits = model(rows[:, :-1], use_cache=False).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter


def _keep(
    path: Path, identity: str, model: PreTrainedModel, optimizer: torch.optim.Optimizer, losses: np.ndarray
) -> None:
    tensors = {"losses": torch.from_numpy(losses.copy())}
    for name, parameter in model.named_parameters():
        tensors[name] = parameter.detach()
        tensors |= {f"{moment} {name}": optimizer.state[parameter][moment] for moment in MOMENTS}
    with atomic_path(path) as made:
        made.write_bytes(save(tensors, metadata={"identity": identity}))


def _restore(
    path: Path,
    identity: str,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    losses: np.ndarray,
) -> int:
    """Fill in what was kept of the same run; return how many steps were done."""
    if not path.exists():
        return 0
    try:
        check_regular(path, CHECKPOINT_BYTES)
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("identity") != identity:
                return 0
            kept = file.get_tensor("losses")
            losses[: len(kept)] = kept.numpy()
            for name, parameter in model.named_parameters():
                parameter.data.copy_(file.get_tensor(name))
                moments = {moment: file.get_tensor(f"{moment} {name}") for moment in MOMENTS}
                optimizer.state[parameter] = moments
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"the checkpoint {path} is damaged ({error}); remove it to start again") from error
    return len(kept)
