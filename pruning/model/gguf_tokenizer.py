"""Whether transformers reads the tokenizer of a GGUF file as the file says."""

import mmap
import re
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerBase

N_WORDS, LEAST_SHARE = 200, 0.5
"""So many words of the vocabulary are read; at least this share of them must be one token each."""
HEADER_BYTES = 2**26
"""Where the entries of a file end at the latest: those of Gemma 3, with 262,144 tokens, take 7 MB."""


def check_gguf_tokenizer(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the tokenizer of a GGUF file, and make it put BOS in front of a text if the file says so.

    That of transformers 5.17 never does, and cuts the words of Gemma 3 into pieces that the model was not trained on:
    everything that is measured is wrong then, and nothing fails.

    Raises:
        ValueError: words of the vocabulary are cut, or BOS is not where the file says.
    """
    advice = f"transformers {transformers.__version__} reads the file wrongly; update it, or load safetensors"
    words = sorted(word for word in tokenizer.get_vocab() if re.fullmatch(r"[A-Za-z]{3,}", word))
    words = words[:: max(1, len(words) // N_WORDS)]
    cut = [word for word in words if len(tokenizer(word, add_special_tokens=False).input_ids) > 1]
    if len(words) - len(cut) < LEAST_SHARE * len(words):
        raise ValueError(
            f"{path}: expected a tokenizer that reads words of its vocabulary as one token each, got {len(cut)} of "
            f"{len(words)} that it cuts, such as {cut[0]!r} into {tokenizer.tokenize(cut[0])}; {advice}"
        )
    wanted = says_bos(path)
    if wanted is not None and begins_with_bos(tokenizer) != wanted:
        tokenizer.add_bos_token = wanted
        if begins_with_bos(tokenizer) != wanted:
            raise ValueError(
                f"{path}: expected a tokenizer with{'' if wanted else 'out'} BOS in front of a text, as the file says, "
                f"got one with{'out' if wanted else ''}; {advice}"
            )


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def says_bos(path: Path) -> bool | None:
    """Whether the file says that a text begins with BOS; None if it says nothing.

    The entry is searched for, since to read all of a header takes seconds: the length of its name and the name, the
    type (7 for a truth value) in 4 bytes, and the value.
    """
    name = b"tokenizer.ggml.add_bos_token"
    entry = len(name).to_bytes(8, "little") + name + (7).to_bytes(4, "little")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(entry, 0, HEADER_BYTES)
        return None if start < 0 else content[start + len(entry)] != 0
