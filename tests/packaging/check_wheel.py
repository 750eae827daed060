"""Build the wheel, install it into an empty environment outside of the checkout, and use both packages there.

A folder missing from the package list, an undeclared dependency and a data file left behind show only here.
`make check-wheel` runs it.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

ENGINE = """
import sys, torch, mikernels
assert "site-packages" in mikernels.__file__, mikernels.__file__
x = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
x[:, 1] = x[:, 0]
for estimator in ("grid", "kde", "renyi2", "adaptive"):
    mi = mikernels.mutual_information(x, estimator=estimator)
    assert int(mi.fill_diagonal_(0).argmax()) == 1, estimator
    mikernels.mutual_information(x[:64], estimator=estimator, impl="reference")
assert (int(mikernels.top_pairs(x, 1).first), int(mikernels.top_pairs(x, 1).second)) == (0, 1)
assert len(mikernels.pairs_above(x, 0.5).mi) == 1
stream = mikernels.GridStream(x)
stream.update(x)
stream.mutual_information()
mikernels.null_distribution(64, draws=10)
mikernels.split_half_reliability(x)
assert not {"transformers", "safetensors", "tqdm", "pruning"} & set(sys.modules)
"""

MODEL = """
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
config = transformers.LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)
transformers.LlamaForCausalLM(config).save_pretrained("model")
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained("model")
"""

RELOAD = """
import transformers
model = transformers.AutoModelForCausalLM.from_pretrained("pruned")
assert model.config.intermediate_size == 32, model.config
"""

PRUNE = [
    "model",
    "--out=pruned",
    "--ratio=0.5",
    "--sequence-length=32",
    "--calibration-tokens=1024",
    "--quiet",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch", help="pip requirement of the torch to install")
    torch = parser.parse_args().torch
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            scratch,
            str(CHECKOUT),
        ]
        subprocess.run(pip, check=True)
        wheel = next(folder.glob("*.whl"))
        venv.create(folder / "env", with_pip=True)
        python = folder / "env" / "bin" / "python"

        def run(*command: str | Path, status: int = 0) -> str:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
            if done.returncode != status:
                sys.exit(
                    f"{command}: expected status {status}, got {done.returncode}\n{done.stdout}{done.stderr}"
                )
            return done.stderr

        run(python, "-m", "pip", "install", "--quiet", torch, str(wheel))
        run(python, "-c", ENGINE)
        message = run(folder / "env/bin/mi-prune", *PRUNE, status=1)
        if "pip install 'mikernels[prune]'" not in message or "Traceback" in message:
            sys.exit(f"mi-prune without its extra: expected what to install in one line, got\n{message}")
        table = folder / "table.csv"
        table.write_text("a,b\n" + "".join(f"{i},{i * i % 7}\n" for i in range(20)), "utf-8")
        message = run(folder / "env/bin/mikernels", table, status=1)
        if "pip install 'mikernels[tables]'" not in message or "Traceback" in message:
            sys.exit(f"mikernels without its extra: expected what to install in one line, got\n{message}")
        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[tables]")
        run(folder / "env/bin/mikernels", table, "--draws=1000")
        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[prune]")
        run(python, "-c", MODEL)
        run(folder / "env/bin/mi-prune", *PRUNE)
        run(python, "-c", RELOAD)
        run(folder / "env/bin/mi-report", "pruned", "--text")
        message = run(folder / "env/bin/mi-report", "pruned", status=1)
        if "pip install 'mikernels[report]'" not in message:
            sys.exit(f"mi-report without its extra: expected what to install, got\n{message}")
        run(python, "-m", "pip", "install", "--quiet", f"{wheel}[report]")
        run(folder / "env/bin/mi-report", "pruned")
    print("wheel: the engine runs alone, and each command names its extra and works with it")


if __name__ == "__main__":
    main()
