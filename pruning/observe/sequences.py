"""Documents to sequences of tokens, as the model reads them when it is used."""

from collections.abc import Iterable, Iterator
from itertools import chain

from torch import Tensor, tensor
from transformers import PreTrainedTokenizerBase

from pruning.observe.sources import Document, Source
from pruning.observe.text import encode, token_windows

WHOLE = 2**23
"""Up to this many characters a source is tokenized whole and cut into windows. Of a larger one only excerpts are."""
CHARACTERS_PER_TOKEN = 8
"""Of an excerpt, for each token of its window: more than languages and code have; doubled where it is not enough."""


def token_sequences(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    n_tokens: int,
    special_tokens: bool,
    bos: bool,
) -> list[Tensor]:
    """Sequences of at most `length` tokens, spread evenly over the source, about `n_tokens` in all.

    Texts that the source joins give windows of exactly `length` tokens (`token_windows`). Conversations, and texts
    that stand alone, give one sequence each, cut off after `length` tokens.

    Args:
        special_tokens, bos: see `token_windows`.

    Raises:
        ValueError: too little text for one window; see also `token_windows`.
    """
    count = max(1, n_tokens // length)
    options = {"special_tokens": special_tokens, "bos": bos}
    documents = _whole(source.documents())
    first = next(iter(documents if documents is not None else source.documents()), "")
    if source.separator is None or not isinstance(first, str):
        if documents is None:
            documents = _places(source, count, length)
        return _alone(documents, source.name, tokenizer, length, count, add_special=bos or special_tokens)
    if documents is not None:
        text = source.separator.join(_texts(documents, source.name))
        return list(token_windows(tokenizer, text, length, limit=count, **options))
    return [_excerpt(source, tokenizer, place / count, length, options) for place in range(count)]


def _whole(documents: Iterator[Document]) -> list[Document] | None:
    """All documents, or None if they have more than `WHOLE` characters."""
    found, size = [], 0
    for document in documents:
        found.append(document)
        size += len(document) if isinstance(document, str) else len(str(document))
        if size > WHOLE:
            return None
    return found


def _excerpt(
    source: Source, tokenizer: PreTrainedTokenizerBase, start: float, length: int, options: dict[str, bool]
) -> Tensor:
    """One window from one place; only what it holds is read and tokenized."""
    excerpt, n_characters = "", CHARACTERS_PER_TOKEN * length
    # From the beginning again where the source ends within the window.
    for text in _texts(chain(source.documents(start), source.documents()), source.name):
        excerpt += (source.separator or "") + text if excerpt else text
        while len(excerpt) >= n_characters:
            try:
                return token_windows(tokenizer, excerpt[:n_characters], length, **options)[0]
            except ValueError:
                if n_characters > WHOLE:
                    raise
                n_characters *= 2
    return token_windows(tokenizer, excerpt, length, **options)[0]


def _places(source: Source, count: int, length: int) -> list[Document]:
    """Documents from `count` places of a large source, of about `length` tokens at each; none twice."""
    found: dict[str, Document] = {}
    for place in range(count):
        size = 0
        for document in source.documents(place / count):
            found.setdefault(str(document), document)
            size += len(str(document))
            if size >= CHARACTERS_PER_TOKEN * length:
                break
    return list(found.values())


def _alone(
    documents: Iterable[Document],
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    *,
    add_special: bool,
) -> list[Tensor]:
    """One sequence for each document, of about `count * length` tokens in all."""
    found = [_sequence(tokenizer, document, length, add_special=add_special) for document in documents]
    sequences = [ids for ids in found if len(ids) > 1]
    if not sequences:
        raise ValueError(f"{name}: expected documents of at least 2 tokens, got none")
    n_kept = max(1, round(len(sequences) * count * length / sum(map(len, sequences))))
    n_kept = min(n_kept, len(sequences))
    return [tensor(sequences[i * len(sequences) // n_kept]) for i in range(n_kept)]


def _sequence(
    tokenizer: PreTrainedTokenizerBase, document: Document, length: int, *, add_special: bool
) -> list[int]:
    if isinstance(document, str):
        limits = {"add_special_tokens": add_special, "truncation": True, "max_length": length}
        return list(encode(tokenizer, document, **limits)["input_ids"])
    if tokenizer.chat_template is None:
        raise ValueError("tokenizer: expected one with a chat template for conversations, got one without")
    text = tokenizer.apply_chat_template(document, tokenize=False)
    # The template adds the special tokens.
    return list(encode(tokenizer, text, add_special_tokens=False, verbose=False)["input_ids"][:length])


def _texts(documents: Iterable[Document], name: str) -> Iterator[str]:
    """The documents, which are all texts."""
    for document in documents:
        if not isinstance(document, str):
            raise ValueError(f"{name}: expected texts as in its first record, got a conversation")
        yield document
