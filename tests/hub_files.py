"""What the hub of the tests serves: files laid out as those of the real model and texts."""

import io
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from conftest import tiny_neox
from project import ROOT
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

EXPERIMENT = yaml.safe_load((ROOT / "configs" / "pythia-70m.yaml").read_text())
PYTHIA = EXPERIMENT["models"]["pythia-70m"]["source"]
WIKITEXT = EXPERIMENT["corpora"]["wikitext-103"]["source"]
PG19 = EXPERIMENT["corpora"]["pg19-book"]["source"]
PARTS_OF = ("test", "train")
BOOKS = ["The first book.\n\nIts second paragraph. " * 300, "The second book. " * 300]


def prose(seed, words):
    return " ".join(random.Random(seed).choices(["attention", "sink", "window", "cache", "token"], k=words))


ARTICLES = {f"Article {n}": f" = Article {n} = \n\n {prose(n, 60)} \n\n = = Part = = \n\n {prose(-n, 200)} \n"
            for n in range(1, 6)}  # fmt: skip


def parquet(**columns):
    """Return the bytes of a parquet file with a row group for every row."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=1, compression="none")
    return file.getvalue()


def wikitext_files():
    """Return files laid out as those of Salesforce/wikitext."""
    lines = [""] + [line + "\n" if line else "" for text in ARTICLES.values() for line in text.split("\n")]
    configs = [
        {
            "config_name": name,
            "data_files": [{"split": part, "path": f"{name}/{part}-*"} for part in PARTS_OF],
        }
        for name in ("wikitext-103-raw-v1", "wikitext-103-v1")
    ]
    file = "wikitext-103-v1/test-00000-of-00001.parquet"
    one_group = io.BytesIO()
    pq.write_table(pa.table({"text": lines}), one_group)
    return {
        "README.md": f"---\n{yaml.safe_dump({'configs': configs})}---\n# WikiText\n".encode(),
        file: one_group.getvalue(),
        file.replace("test", "train"): parquet(text=["never fetched"]),
    }


def pythia_files(folder):
    """Return files as those of EleutherAI/pythia-70m: float16, older names, buffers among the weights."""
    write_tiny_model(folder, make=tiny_neox, max_position_embeddings=2048)
    weights = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    for layer in range(2):
        attention = f"gpt_neox.layers.{layer}.attention"
        weights[f"{attention}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
        weights[f"{attention}.masked_bias"] = torch.tensor(-1e9)
        weights[f"{attention}.rotary_emb.inv_freq"] = 10_000.0 ** (-torch.arange(0, 4, 2) / 4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"], config["dtype"]
    config |= {"rotary_pct": 0.5, "rotary_emb_base": 10_000, "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "GPTNeoXTokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return {file.name: file.read_bytes() for file in folder.iterdir()} | {
        "README.md": b"# Pythia", "pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"another",
    }  # fmt: skip


def environment(hub, folder, **changes):
    """Return the environment of a client whose hub is `hub` and whose cache is in `folder`."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0", **changes,
    }  # fmt: skip
