"""The state of a scoring run on disk, from which a killed one goes on to the same losses, bit for bit."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from streamlm.cache.sink_cache import SinkCache
from streamlm.records.files import atomic_path, clear_leftovers


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
            ValueError: if the file is damaged.
        """
        self.begin = time.perf_counter()
        try:
            with safe_open(self.path, framework="pt", device=str(device)) as file:
                about = file.metadata()
                if json.loads(about["identity"]) != self.identity:
                    return 0
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return 0
        except SafetensorError as error:
            raise ValueError(
                f"the checkpoint {self.path} is damaged ({error}); remove it to start again"
            ) from error
        done = state.pop("losses").cpu().numpy()
        losses[: len(done)] = done
        cache.load_state_dict(state)
        self.seconds, self.kept = float(about["seconds"]), len(done)
        self.restored = len(done)
        return len(done)

    def keep(self, losses: np.ndarray, cache: SinkCache) -> None:
        """Write the state if it is time to."""
        if len(losses) - self.kept < self.every:
            return
        tensors = {"losses": torch.from_numpy(losses), **cache.state_dict()}
        about = {"identity": json.dumps(self.identity), "seconds": str(self.elapsed())}
        with atomic_path(self.path) as path:
            path.write_bytes(save(tensors, metadata=about))  # `save_file` hides why a disk refuses
        self.kept = len(losses)

    def elapsed(self) -> float:
        """Return the seconds of scoring, those before a kill included as far as they were kept."""
        return self.seconds + time.perf_counter() - self.begin


def discard_checkpoint(path: Path | str | None) -> None:
    """Remove the state of a run whose losses are safe on disk."""
    if path is not None:
        Path(path).unlink(missing_ok=True)
        clear_leftovers(path)
