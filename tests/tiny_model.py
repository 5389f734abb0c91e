"""Write a tiny random Llama with a byte-level tokenizer: `python tests/tiny_model.py FOLDER`."""

import sys
from pathlib import Path

from conftest import tiny_llama
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe brief.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(**options):
    """Return a tokenizer whose vocabulary is the 256 bytes and one BOS."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=vocab | {"<s>": len(vocab)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", **options)


def chat_tokenizer(chat_template=CHATML):
    """Return the same with two tokens that delimit turns, and a chat template."""
    tokenizer = byte_tokenizer(eos_token="<|im_end|>", chat_template=chat_template)
    tokenizer.add_tokens([AddedToken("<|im_start|>", special=True)])
    return tokenizer


def write_tiny_model(folder, tokenizer=None, make=tiny_llama, **changes):
    """Write a model folder."""
    tokenizer = tokenizer or byte_tokenizer()
    options = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    make(**options | changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    write_tiny_model(sys.argv[1])
