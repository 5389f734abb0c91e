"""Write a tiny random Llama with a byte-level tokenizer: `python tests/tiny_model.py FOLDER`."""

import sys
from pathlib import Path

from conftest import tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def write_tiny_model(folder, make=tiny_llama):
    """Write a model folder whose vocabulary is the 256 bytes and one BOS."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab | {"<s>": len(vocab)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    make(vocab_size=len(vocab) + 1).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>").save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    write_tiny_model(sys.argv[1])
