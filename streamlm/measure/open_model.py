"""Open a model to measure it: threads, device and number type as asked, and the beginning of its records."""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from streamlm.cache.models import load_model, model_title, read_model, trained_length
from streamlm.cache.products import products_of
from streamlm.config import Compute
from streamlm.measure.device import choose_device, device_name, parse_dtype, use_threads
from streamlm.measure.scoring import vocab_size
from streamlm.provenance import describe_environment
from streamlm.records.names import check_name
from streamlm.records.types import Environment
from streamlm.stats import BootstrapConfig


@dataclass(frozen=True)
class OpenedModel:
    """A model in memory, with what its records say of it."""

    model: PreTrainedModel
    title: str  # its true name
    compute: Compute  # the device is the one that was chosen

    def environment(self, module: Path | str) -> Environment:
        """Return the section `environment` of a record.

        Args:
            module: the file that measures.
        """
        return {
            **describe_environment(module),  # type: ignore[typeddict-item]
            "device": device_name(self.compute.device),
            "dtype": self.compute.dtype,
            "torch_threads": torch.get_num_threads(),
            "products": products_of(self.model),
        }

    def describe(
        self, module: str, dataset: str, protocol: str, bootstrap: BootstrapConfig
    ) -> dict[str, Any]:
        """Return what a record on one text says first; `module` is the file that measures."""
        return {
            "model": self.title,
            "trained_length": self.trained_length,
            "dataset": dataset,
            "protocol": protocol,
            "confidence": bootstrap.confidence,
            "bootstrap": asdict(bootstrap),
            "environment": {**self.environment(module), "seed": bootstrap.seed},
        }

    @property
    def trained_length(self) -> int | None:
        """Positions that the model was trained to, if its config says."""
        return trained_length(self.model)

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows."""
        return vocab_size(self.model)


def open_model(
    folder: Path | str,
    compute: Compute,
    *,
    title: str | None = None,
    prepared: bool = True,
    compile: bool = False,
    yarn: float | None = None,
) -> OpenedModel:
    """Return the model in `folder`, ready to be measured.

    Args:
        folder: a transformers model folder.
        compute: number type, device and threads.
        title: true name of the model, if its folder does not say it.
        prepared: for `SinkCache`; else for the caches of transformers.
        compile: whether single tokens go through a compiled step, if it is prepared.
        yarn: see `load_model`.

    Raises:
        ValueError: if there is no such model, type or device, or it cannot be prepared or named.
    """
    use_threads(compute.torch_threads)
    device = choose_device(compute.device)
    load = partial(load_model, compile=compile) if prepared else read_model
    model = load(folder, dtype=parse_dtype(compute.dtype), device=device, yarn=yarn)
    return OpenedModel(
        model,
        check_name(title or model_title(model) or Path(folder).resolve().name, f"the model in {folder}"),
        Compute(dtype=compute.dtype, device=device, torch_threads=compute.torch_threads),
    )
