"""Tasks: the calibration data of a model and the measure of its quality."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.observe.capture import evaluation_mode
from pruning.observe.text import builtin_text, read_text, token_windows
from pruning.report.quality import perplexity

CALIBRATION_SHARE = 0.88
"""Share of the windows of the validation text. The rest is for choosing hyperparameters and is never read here."""

MORE = 3  # factor on the calibration windows for repairs that benefit from more text
BATCH_TOKENS = 2048
GROUPS = 50  # groups of sentence pairs for the jackknife


@dataclass(frozen=True)
class Windows:
    """Test windows: the first ones of a text or evenly spaced ones.

    The text is the test split of WikiText-2, or the language reference that ships with CPython.
    """

    count: int
    length: int
    evenly: bool = True
    wikitext: bool = True

    @property
    def description(self) -> str:
        where = "evenly spaced" if self.evenly else "first"
        reference = "the Python language reference (another domain than the calibration text)"
        text = "the WikiText-2 test split" if self.wikitext else reference
        return f"{self.count} {where} windows of {self.length} tokens of {text}"

    def pick(self, windows: Tensor) -> Tensor:
        return evenly_spaced(windows, self.count) if self.evenly else windows[: self.count]


PROTOCOLS = {
    "8x512": Windows(8, 512, evenly=False),
    "16x512": Windows(16, 512),
    "16x2048": Windows(16, 2048),
    "python": Windows(16, 512, wikitext=False),
}


class Task(Protocol):
    """Calibration windows and an evaluation."""

    name: str  # of the data set
    measure: str  # "perplexity" or "spearman"
    calibration: Tensor  # windows of tokens [n, L], evenly spaced over the calibration text
    more: Tensor  # up to `MORE` times as many windows
    source: str  # where the windows come from, as stored in rows

    def evaluate(self, model: PreTrainedModel) -> dict[str, Any]: ...


class WikiText:
    """Perplexity of a causal model on the test split of WikiText-2, calibrated on the validation split."""

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
        self.calibration, self.more = (evenly_spaced(windows, n) for n in (n_windows, MORE * n_windows))
        self.source = f"evenly from the first {100 * CALIBRATION_SHARE:g} % of wikitext-2/valid.txt"
        texts = {True: read_text(folder / "test.txt"), False: builtin_text()[1]}
        self.tests = {
            name: p.pick(token_windows(tokenizer, texts[p.wikitext], p.length))
            for name, p in PROTOCOLS.items()
            if name in protocols
        }

    def evaluate(self, model: PreTrainedModel) -> dict[str, Any]:
        """By protocol the perplexity and the mean negative log-likelihood of each window, nats."""
        quality = {}
        for name, windows in self.tests.items():
            batches = windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
            nll = perplexity(model, batches).nll
            quality[name] = {
                "perplexity": float(f"{float(nll.mean().exp()):.6g}"),
                "nll": [round(v, 6) for v in nll.tolist()],
            }
        return quality


class Similarity:
    """STS-B: rank correlation of an encoder's cosine similarities with human scores of sentence pairs.

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
        self.calibration, self.more = (evenly_spaced(windows, n) for n in (n_windows, MORE * n_windows))
        self.source = "evenly from the sentences of stsb-en-test.csv"
        self.tokenizer = tokenizer
        self.pairs = read_pairs(folder / "stsb-en-dev.csv")

    def evaluate(self, model: PreTrainedModel) -> dict[str, Any]:
        """The correlation over all pairs, and with each of `GROUPS` groups of pairs left out."""
        sentences = [s for first, second, _ in self.pairs for s in (first, second)]
        vectors = embed(model, self.tokenizer, sentences)
        cosines = (vectors[0::2] * vectors[1::2]).sum(1).numpy()
        gold = np.array([score for _, _, score in self.pairs])
        group = np.arange(len(gold)) % GROUPS

        def spearman(chosen: np.ndarray) -> float:
            return round(float(spearmanr(cosines[chosen], gold[chosen]).statistic), 6)

        return {
            "dev": {
                "spearman": spearman(group >= 0),
                "without_group": [spearman(group != g) for g in range(GROUPS)],
            }
        }


def evenly_spaced(windows: Tensor, count: int) -> Tensor:
    """At most `count` of the windows."""
    count = min(count, len(windows))
    return windows[[i * len(windows) // count for i in range(count)]]


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Read lines of the form `sentence,sentence,score`.

    Raises:
        ValueError: a line with another number of fields.
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
    """Sentence vectors `[n, d]` float32: means of the last hidden states over the tokens, scaled to length 1."""
    # Sentences of similar lengths need little padding.
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    batches: list[Tensor] = []
    with torch.inference_mode(), evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            texts = [sentences[i] for i in order[start : start + batch_size]]
            inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
            states = model.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).last_hidden_state.float()
            mask = inputs["attention_mask"][:, :, None].float()
            batches.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=1).cpu())
    vectors = torch.cat(batches)
    return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors)
