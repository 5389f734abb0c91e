"""Read a causal language model from its folder."""

import io
import warnings
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from streamlm.cache.folder import FolderError, check_values, explained_folder, read_object, reason_of
from streamlm.cache.prepare import switch
from streamlm.cache.products import use_fast_linears
from streamlm.cache.stored import read_config, stored_weights, weight_files
from streamlm.cache.supported import layer_windows, rope_settings
from streamlm.characters import without_steering
from streamlm.limits import YARN


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compile: bool = False,
    yarn: float | None = None,
) -> PreTrainedModel:
    """Return the causal language model in `folder`, prepared for `SinkCache`.

    Args:
        folder: a transformers model folder with safetensors weights.
        dtype: of the weights.
        device: a torch device name.
        compile: whether single tokens go through a compiled step (see `compile_steps`).
        yarn: how many times the trained length its positions are stretched to, by YaRN (arXiv:2309.00071);
            None leaves them as they are.

    Raises:
        ValueError: if the folder holds no such model, or the model is not supported (see `prepare`); if there
            is no compiler.
    """
    model = read_model(folder, dtype=dtype, device=device, yarn=yarn)
    try:
        switch(model)
    except ValueError:
        raise
    except Exception as error:  # numbers in its config that transformers lets pass
        raise ValueError(f"the model in {folder} cannot be prepared: {reason_of(error)}") from error
    if compile:
        from streamlm.cache.compiled import compile_steps  # which loads torch's compiler

        compile_steps(model)
    return model


def read_model(
    folder: Path | str, *, dtype: torch.dtype, device: str, yarn: float | None = None
) -> PreTrainedModel:
    """Return the causal language model in `folder` for transformers' caches; arguments as of `load_model`.

    Its linear layers are computed by the fastest product (`use_fast_linears`).

    Raises:
        ValueError: if the folder holds no such model.
    """
    folder = Path(folder)
    config = read_config(folder)
    if yarn is not None:
        _stretch_positions(folder, config, yarn)
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"{folder} holds an adapter, whose adapter_config.json names another model; merge the two "
            "(`merge_and_unload` of peft) and take the merged folder"
        )
    if (generation := folder / "generation_config.json").exists():
        with explained_folder(str(generation)):
            check_values(read_object(generation))
    _check_supported(folder, config)
    stored = stored_weights(folder)
    with explained_folder(f"the model in {folder}"), stored.bounding(), redirect_stderr(io.StringIO()):
        # Standard error would show a bar per tensor, which fills log files.
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(fault):
            names = sorted(name if isinstance(name, str) else name[0] for name in report[fault])
            raise ValueError(
                f"the weights in {folder} do not fit its config.json: {len(names)} {fault.replace('_', ' ')}"
                f", such as {without_steering(names[0])}; what is missing would be random numbers"
            )
    _warn_of_other_weights(folder)
    read: PreTrainedModel = model.to(device).eval()
    use_fast_linears(read)
    return read


def _stretch_positions(folder: Path, config: PretrainedConfig, factor: float) -> None:
    """Let a config ask for YaRN; raise ValueError if its positions are stretched by themselves."""
    if not 1 < factor <= YARN:
        raise ValueError(f"yarn must be more than 1 and at most {YARN}, got {factor:g}")
    text = config.get_text_config(decoder=True)
    ropes = rope_settings(text)
    if len(ropes) != 1 or ropes[0].get("rope_type", "default") != "default":
        raise ValueError(f"the model in {folder} has stretched positions of its own; leave out yarn")
    trained = getattr(text, "max_position_embeddings", None)
    if type(trained) is not int:
        raise ValueError(f"the config in {folder} says no trained length to stretch; leave out yarn")
    stretched = {"factor": float(factor), "original_max_position_embeddings": trained}
    text.rope_parameters = {**ropes[0], "rope_type": "yarn", **stretched}


def _check_supported(folder: Path, config: PretrainedConfig) -> None:
    """Refuse layers that are not supported before transformers builds them: it fetches kernels for some."""
    with explained_folder(f"the config in {folder}"):
        try:
            layer_windows(config)
        except ValueError as error:
            raise FolderError(str(error)) from error


def _warn_of_other_weights(folder: Path) -> None:
    """Warn if a folder holds weights that transformers does not read, beside those that it does."""
    used = {file.name for file in weight_files(folder)}
    found = {
        path.name for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)
    }
    others = sorted(name for name in found - used if not name.startswith("adapter"))
    if others:
        warnings.warn(
            f"{folder} holds more than one set of weights: {min(used)} is read, {others[0]} is not; remove "
            "the set that is not meant",
            stacklevel=4,
        )


def model_title(model: PreTrainedModel) -> str:
    """Return the true name of a model: what its conversion noted, or else its folder's name."""
    return getattr(model.config, "streamlm_title", None) or Path(model.config._name_or_path).name


def trained_length(model: PreTrainedModel) -> int | None:
    """Return the number of positions that the model was trained to, if its config says."""
    length: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return length
