"""The state of a scoring run on disk, from which a killed one goes on to the same losses, bit for bit."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from streamlm.cache.sink_cache import SinkCache
from streamlm.cache.tensor_file import read_about, read_tensors, write_tensors
from streamlm.characters import without_steering
from streamlm.input_files import check_regular
from streamlm.limits import CHECKPOINT_BYTES


@dataclass
class Checkpoint:
    """Losses so far and the cache, in one file; a file of another run is not taken up.

    Args:
        path: of the file; `discard_checkpoint` removes it.
        identity: JSON; everything that decides the losses: ids, geometry, weights, code, threads.
        every: tokens between two writes.
    """

    path: Path
    identity: dict[str, Any]
    every: int
    seconds: float = 0.0  # spent by the runs before this one
    begin: float = field(default_factory=time.perf_counter)
    restored: int = 0  # losses taken up
    kept: int = 0  # losses in the file

    def restore(self, losses: np.ndarray, cache: SinkCache, device: torch.device) -> int:
        """Fill in the losses and the cache that are held here; return how many losses there are.

        Raises:
            ValueError: if the file is damaged, or no checkpoint.
        """
        self.begin = time.perf_counter()
        if not self.path.exists():
            return 0
        try:
            check_regular(self.path, CHECKPOINT_BYTES)
            about = read_about(self.path)
            if json.loads(about["identity"]) != self.identity:
                return 0
            state = {name: tensor.to(device) for name, tensor in read_tensors(self.path).items()}
            self._take_up(about, state, losses, cache)
        except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
            raise ValueError(
                f"the checkpoint {self.path} is damaged ({_reason(error)}); remove it to start again"
            ) from error
        return self.restored

    def _take_up(
        self, about: dict[str, str], state: dict[str, torch.Tensor], losses: np.ndarray, cache: SinkCache
    ) -> None:
        """Fill in what was held, if it is of such a run."""
        seconds, done = float(about["seconds"]), state.pop("losses")
        if (done.ndim, done.dtype) != (1, torch.from_numpy(losses).dtype) or len(done) > len(losses):
            raise ValueError("its losses are not those of such a run")
        if not (bool(done.isfinite().all()) and 0 <= seconds < np.inf):
            raise ValueError("its losses or its seconds are not finite")
        cache.load_state_dict(state)
        if "pads" in state or cache.get_seq_length() != len(done):
            raise ValueError("its losses and its cache are not of one token of one stream")
        losses[: len(done)] = done.cpu().numpy()
        self.seconds, self.kept, self.restored = seconds, len(done), len(done)

    def keep(self, losses: np.ndarray, cache: SinkCache) -> None:
        """Write the state if it is time to."""
        if len(losses) - self.kept < self.every:
            return
        tensors = {"losses": torch.from_numpy(losses), **cache.state_dict()}
        about = {"identity": json.dumps(self.identity), "seconds": str(self.elapsed())}
        write_tensors(self.path, about, tensors)
        self.kept = len(losses)

    def elapsed(self) -> float:
        """Return the seconds of scoring, those before a kill included as far as they were kept."""
        return self.seconds + time.perf_counter() - self.begin


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error.args[0]}, and may be no checkpoint"
    return without_steering(str(error)).replace("\n", " ")
