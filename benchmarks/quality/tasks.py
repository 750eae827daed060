"""What a model is calibrated on, and what its quality is measured by."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.model.evaluation_mode import evaluation_mode
from pruning.observe.text import builtin_text, read_text, token_windows
from pruning.report.quality import perplexity

CALIBRATION_SHARE = 0.88
"""Of the windows of the validation text. The others are for choosing hyper-parameters, and never read here."""

MORE = 3
"""Times the windows of calibration, for repairs that gain from more of them."""

BATCH_TOKENS = 2048
GROUPS = 50
"""Of the pairs of sentences, for the jackknife."""


@dataclass(frozen=True)
class Windows:
    """Windows of WikiText-2's test text, the first ones or spread evenly over it, or of a text unlike it: the language
    reference that ships inside CPython."""

    count: int
    length: int
    evenly: bool = True
    wikitext: bool = True

    @property
    def said(self) -> str:
        where = (
            "WikiText-2's test text"
            if self.wikitext
            else "Python's language reference, unlike the text of calibration"
        )
        return (
            f"{'' if self.evenly else 'the first '}{self.count} windows of {self.length} tokens of {where}"
            + (", spread evenly" if self.evenly else "")
        )

    def pick(self, windows: Tensor) -> Tensor:
        return spread(windows, self.count) if self.evenly else windows[: self.count]


PROTOCOLS = {
    "8x512": Windows(8, 512, evenly=False),
    "16x512": Windows(16, 512),
    "16x2048": Windows(16, 2048),
    "python": Windows(16, 512, wikitext=False),
}


class Task(Protocol):
    """Attributes:
    name: of the data.
    measure: `"perplexity"` or `"spearman"`.
    calibration: windows of tokens `[n, L]`, spread evenly over the text to calibrate on.
    more: up to `MORE` times as many.
    said: the same in words.
    """

    name: str
    measure: str
    calibration: Tensor
    more: Tensor
    said: str

    def evaluate(self, model: PreTrainedModel) -> dict[str, Any]: ...


class WikiText:
    """Perplexity of a causal model on WikiText-2's test text, calibrated on its validation text."""

    name = "WikiText-2"
    measure = "perplexity"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        data: Path,
        *,
        n_windows: int,
        length: int,
        protocols: list[str],
    ) -> None:
        folder = data / "wikitext-2"
        windows = token_windows(tokenizer, read_text(folder / "valid.txt"), length)
        windows = windows[: max(1, int(CALIBRATION_SHARE * len(windows)))]
        self.calibration, self.more = spread(windows, n_windows), spread(windows, MORE * n_windows)
        self.said = f"evenly from the first {100 * CALIBRATION_SHARE:g} % of wikitext-2/valid.txt"
        texts = {True: read_text(folder / "test.txt"), False: builtin_text()[1]}
        wanted = {name: PROTOCOLS[name] for name in protocols}
        self.tests = {
            n: w.pick(token_windows(tokenizer, texts[w.wikitext], w.length)) for n, w in wanted.items()
        }

    def evaluate(self, model: PreTrainedModel) -> dict[str, Any]:
        """By protocol the perplexity, and the mean negative log-likelihood of each window's tokens, nats."""
        found = {}
        for name, windows in self.tests.items():
            batches = windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
            nll = perplexity(model, batches).nll
            found[name] = {
                "perplexity": float(f"{float(nll.mean().exp()):.6g}"),
                "nll": [round(v, 6) for v in nll.tolist()],
            }
        return found


class Similarity:
    """STS-B: rank correlation of an encoder's cosines with people's scores of pairs of sentences.

    Measured on the development pairs, calibrated on the sentences of the test pairs.
    """

    name = "STS-B"
    measure = "spearman"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, data: Path, *, n_windows: int, length: int
    ) -> None:
        folder = data / "stsb"
        text = " ".join(
            s for first, second, _ in read_pairs(folder / "stsb-en-test.csv") for s in (first, second)
        )
        windows = token_windows(tokenizer, text, length, special_tokens=True)
        self.calibration, self.more = spread(windows, n_windows), spread(windows, MORE * n_windows)
        self.said = "evenly from the sentences of stsb-en-test.csv"
        self.tokenizer = tokenizer
        self.pairs = read_pairs(folder / "stsb-en-dev.csv")

    def evaluate(self, model: PreTrainedModel) -> dict[str, Any]:
        """Spearman's correlation, and the same with each of `GROUPS` groups of pairs left out."""
        sentences = [s for first, second, _ in self.pairs for s in (first, second)]
        vectors = embed(model, self.tokenizer, sentences)
        cosines = (vectors[0::2] * vectors[1::2]).sum(1).numpy()
        gold = np.array([score for _, _, score in self.pairs])
        group = np.arange(len(gold)) % GROUPS
        without = [spearman(cosines[group != g], gold[group != g]) for g in range(GROUPS)]
        return {
            "dev": {
                "spearman": round(spearman(cosines, gold), 6),
                "without_group": [round(v, 6) for v in without],
            }
        }


def spread(windows: Tensor, count: int) -> Tensor:
    """At most `count` of them, evenly."""
    count = min(count, len(windows))
    return windows[[i * len(windows) // count for i in range(count)]]


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Lines `sentence,sentence,score`.

    Raises:
        ValueError: a line that is none.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    for number, row in enumerate(rows, 1):
        if len(row) != 3:
            raise ValueError(f"{path}:{number}: expected two sentences and a score, got {len(row)} fields")
    return [(first, second, float(score)) for first, second, score in rows]


def embed(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sentences: list[str], *, batch_size: int = 64
) -> Tensor:
    """Mean of the last hidden states over each sentence's tokens, of length 1: `[n, d]` float32."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # little padding
    found: list[Tensor] = []
    with torch.inference_mode(), evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            texts = [sentences[i] for i in order[start : start + batch_size]]
            inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
            states = model.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).last_hidden_state.float()
            mask = inputs["attention_mask"][:, :, None].float()
            found.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=1).cpu())
    vectors = torch.cat(found)
    return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of the ranks, equal values sharing the mean of theirs."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
