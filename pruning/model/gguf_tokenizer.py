"""Whether transformers reads the tokenizer of a GGUF file as the file says."""

import mmap
import re
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerBase

N_WORDS = 200
"""About so many words of the vocabulary are tried."""
LEAST_SHARE = 0.9
"""Of them that must be one token each: all are in eight tokenizers that are read right, 20 % in one that is not."""
HEADER_BYTES = 2**26
"""Where the entries of a file end at the latest: those of Gemma 3, with 262,144 tokens, take 7 MB."""
BEGIN_WITH_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2")
"""Pre-tokenizers of which llama.cpp puts BOS in front of a text if the file says nothing (`llama-vocab.cpp`)."""


def check_gguf_tokenizer(path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check the tokenizer that transformers made of a GGUF file, and set BOS and EOS as the file says.

    transformers 5.17 never puts BOS in front of a text, takes BOS for EOS in files of the architecture `llama`, and
    cuts the words of Gemma 3 into pieces that the model was not trained on: everything that is measured is wrong then,
    and nothing fails.

    Raises:
        ValueError: words of the vocabulary are cut, or BOS cannot be set.
    """
    words = sorted(word for word in tokenizer.get_vocab() if re.fullmatch(r"[A-Za-z]{3,}", word))
    words = words[:: max(1, len(words) // N_WORDS)]
    model = tokenizer.backend_tokenizer.model  # alone: normalizers may put a space in front, or lower-case
    cut = [word for word in words if len(model.tokenize(word)) > 1]
    if len(words) - len(cut) < LEAST_SHARE * len(words):
        pieces = [token.value for token in model.tokenize(cut[0])]
        raise ValueError(
            f"{path}: expected a tokenizer that reads words of its vocabulary as one token each, got {len(cut)} of "
            f"{len(words)} that it cuts, such as {cut[0]!r} into {pieces}; transformers {transformers.__version__} "
            f"reads the file wrongly: update it, or load the model from safetensors"
        )
    entries = Entries(path)
    for name in ("bos", "eos"):
        token = entries.read(f"{name}_token_id")
        if isinstance(token, int) and getattr(tokenizer, f"{name}_token_id") != token:
            setattr(tokenizer, f"{name}_token", tokenizer.convert_ids_to_tokens(token))
    wanted = says_bos(entries)
    if wanted is not None and begins_with_bos(tokenizer) != wanted:
        tokenizer.add_bos_token = wanted
        if begins_with_bos(tokenizer) != wanted:
            raise ValueError(
                f"{path}: expected a tokenizer with{'' if wanted else 'out'} BOS in front of a text, as the file says, "
                f"got one that reads 'a' as {tokenizer('a').input_ids}, with the BOS token {tokenizer.bos_token!r}; "
                f"load the model from safetensors"
            )


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts BOS in front of a text by itself."""
    return tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def says_bos(entries: "Entries") -> bool | None:
    """Whether a text begins with BOS; None if the file leaves it open.

    A file that says nothing means BOS if its vocabulary is of sentencepiece, or has one of the pre-tokenizers
    `BEGIN_WITH_BOS`. Of Gemma 4 transformers ignores what the file says, as the tokenizer that it was made of does.
    """
    kind, stated = entries.read("model"), entries.read("add_bos_token")
    if kind == "gemma4":
        return None
    if isinstance(stated, bool):
        return stated
    return True if kind == "llama" or entries.read("pre") in BEGIN_WITH_BOS else None


class Entries:
    """The entries of a GGUF file on its tokenizer. Each is searched for: to read all of a header takes seconds."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            self._header = content[:HEADER_BYTES]

    def read(self, name: str) -> bool | int | str | None:
        """The value of `tokenizer.ggml.NAME`, if it is a truth value, an unsigned integer of 32 bits or a text.

        An entry is the length of its name in 8 bytes, the name, the type in 4 bytes (7, 4 or 8) and the value; a text
        begins with its length in 8 bytes.
        """
        key = f"tokenizer.ggml.{name}".encode()
        key = len(key).to_bytes(8, "little") + key
        start = self._header.find(key)
        if start < 0:
            return None
        start += len(key)
        kind, value = (
            int.from_bytes(self._header[start : start + 4], "little"),
            self._header[start + 4 : start + 260],
        )
        if kind == 8:
            length = int.from_bytes(value[:8], "little")
            return value[8 : 8 + length].decode(errors="replace")
        return {4: int.from_bytes(value[:4], "little"), 7: value[:1] != b"\0"}.get(kind)
