"""Read a causal language model from its folder."""

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from streamlm.cache.prepare import switch
from streamlm.cache.products import use_fast_linears


def load_model(
    folder: Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compile: bool = False,
) -> PreTrainedModel:
    """Return the causal language model in `folder`, prepared for `SinkCache`.

    Args:
        folder: a transformers model folder with safetensors weights.
        dtype: of the weights.
        device: a torch device name.
        compile: whether single tokens go through a compiled step (see `compile_steps`).

    Raises:
        ValueError: if the folder holds no such model, or the model is not supported (see `prepare`); if there
            is no compiler.
    """
    model = read_model(folder, dtype=dtype, device=device)
    switch(model)
    if compile:
        from streamlm.cache.compiled import compile_steps  # which loads torch's compiler

        compile_steps(model)
    return model


def read_model(folder: Path | str, *, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Return the causal language model in `folder` for transformers' caches; arguments as of `load_model`.

    Its linear layers are computed by the fastest product (`use_fast_linears`).

    Raises:
        ValueError: if the folder holds no such model.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json")
    try:
        with redirect_stderr(io.StringIO()):  # a bar per tensor, which fills log files
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # what reads weights is chosen by the config: quantisers raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        is_quantised = "quantization_config" in (Path(folder) / "config.json").read_text("utf-8", "replace")
        remedy = "take its unquantised weights" if is_quantised else "fetch or convert it again"
        raise ValueError(f"the model in {folder} cannot be read: {reason}; {remedy}") from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(fault):
            names = sorted(map(str, report[fault]))
            raise ValueError(
                f"the weights in {folder} do not fit its config.json: {len(names)} {fault.replace('_', ' ')}"
                f", such as {names[0]}; what is missing would be random numbers"
            )
    read: PreTrainedModel = model.to(device).eval()
    use_fast_linears(read)
    return read


def model_title(model: PreTrainedModel) -> str:
    """Return the true name of a model: what its conversion noted, or else its folder's name."""
    return getattr(model.config, "streamlm_title", None) or Path(model.config._name_or_path).name


def trained_length(model: PreTrainedModel) -> int | None:
    """Return the number of positions that the model was trained to, if its config says."""
    length: int | None = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return length
