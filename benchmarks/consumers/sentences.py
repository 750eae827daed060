"""Compare a pruned model with the dense one in sentence-transformers, on the sentences of STS-B.

    python -m benchmarks.consumers.sentences DENSE PRUNED --data DIR

Both are loaded by `SentenceTransformer`, which has to be installed. DIR contains stsb/stsb-en-dev.csv. Calibrate on
the sentences of stsb-en-test.csv, which this does not read.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.quality.tasks import read_pairs
from benchmarks.record import append, argument_parser, command, row
from pruning.model.output_folder import MANIFEST

DECIMALS = 4


def main() -> int:
    parser = argument_parser("benchmarks.consumers.sentences", __doc__ or "", "consumers.jsonl")
    parser.add_argument("dense", type=Path)
    parser.add_argument("pruned", type=Path, help="a result of mi-prune")
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    import sentence_transformers

    pairs = read_pairs(args.data / "stsb" / "stsb-en-dev.csv")
    sentences = [sentence for first, second, _ in pairs for sentence in (first, second)]
    gold = [score for _, _, score in pairs]
    vectors, result = [], {}
    for name, folder in (("dense", args.dense), ("pruned", args.pruned)):
        model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        vectors.append(np.asarray(model.encode(sentences, normalize_embeddings=True)))
        cosines = (vectors[-1][0::2] * vectors[-1][1::2]).sum(1)
        result[f"spearman_{name}"] = round(float(spearmanr(cosines, gold).statistic), DECIMALS)
    between = (vectors[0] * vectors[1]).sum(1)
    quantiles = {"mean": between.mean(), "5 %": np.quantile(between, 0.05), "min": between.min()}
    result["cosine_dense_pruned"] = {name: round(float(value), DECIMALS) for name, value in quantiles.items()}
    print(json.dumps(result, indent=1))
    manifest = json.loads((args.pruned / MANIFEST).read_text("utf-8"))
    shown = ("ratio", "criterion", "repair", "sample_size", "sequence_length")
    case: dict[str, Any] = {name: manifest["settings"][name] for name in shown}
    case |= {"widths": manifest["neurons"]["widths"], "calibration_tokens": manifest["calibration_tokens"]}
    case |= {"calibration": Path(manifest["calibration"]["source"]).name}
    line = command("benchmarks.consumers.sentences", args.dense.name, args.pruned.name, data="DIR")
    versions = {"sentence-transformers": sentence_transformers.__version__}
    append([row("consumers.sentences", line, case, result, versions)], args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
