"""A build of the engine for Hugging Face's `kernels`: a folder that `kernels.get_local_kernel` loads.

    python -m mikernels.integrations.hf_kernels build/kernel

Such a build holds the standard library, torch, Triton and relative imports only, and one Python process may load
several versions of it, each under a name of its own. The folder is therefore a copy of the package in which absolute
imports are relative and the operators have a namespace that no other build has. NumPy is used where it is installed.

Requirements: https://huggingface.co/docs/kernels/kernel-requirements
"""

import argparse
import hashlib
import json
import re
import shutil
from pathlib import Path

from mikernels.version import __version__

PACKAGE = Path(__file__).parents[1]
LEFT_OUT = ("integrations", "cli.py", "arguments.py", "files.py", "terminal.py")
"""Plugs and the command, which need other packages."""
BACKENDS = ("cpu", "cuda", "rocm")

_IMPORT = re.compile(r"^(\s*)from mikernels((?:\.\w+)*) import ", re.MULTILINE)
_NAMESPACE = re.compile(r"torch\.ops\.mikernels\b|\bmikernels::")


def build(out: Path) -> None:
    """Write `out/build/torch-BACKEND` for every backend; all hold the same files.

    Raises:
        ValueError: an absolute import that cannot be made relative.
    """
    sources = {
        path.relative_to(PACKAGE): path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.suffix in (".py", ".json", ".typed") and path.relative_to(PACKAGE).parts[0] not in LEFT_OUT
    }
    digest = hashlib.sha256(b"".join(sources.values())).hexdigest()[:16]
    for backend in BACKENDS:
        name = f"_mikernels_{backend}_{digest}"
        variant = out / "build" / f"torch-{backend}"
        shutil.rmtree(variant, ignore_errors=True)
        for place, content in sources.items():
            target = variant / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if place.suffix == ".py":
                content = relative(content.decode("utf-8"), place, name).encode("utf-8")
            target.write_bytes(content)
        metadata = {
            "id": name,
            "name": "mikernels",
            "version": int(__version__.partition(".")[0]),
            "license": "Apache-2.0",
            "python-depends": [],
            "backend": {"type": backend},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")


def relative(source: str, place: Path, namespace: str) -> str:
    """A module of the package with relative imports, and operators in a namespace of their own.

    Args:
        place: of the module within the package.
    """
    dots = "." * len(place.parts)
    source = _IMPORT.sub(lambda found: f"{found[1]}from {dots}{found[2][1:]} import ", source)
    source = _NAMESPACE.sub(lambda found: found[0].replace("mikernels", namespace), source)
    if left := re.search(r"^\s*(?:import mikernels|from mikernels)\b.*", source, re.MULTILINE):
        raise ValueError(
            f"{place}: expected imports of the form `from mikernels... import ...`, got {left[0]!r}"
        )
    return source


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mikernels.integrations.hf_kernels",
        description="Build a folder for Hugging Face kernels.",
    )
    parser.add_argument("out", type=Path, help="folder; its subfolder `build` is written")
    build(parser.parse_args().out)


if __name__ == "__main__":
    main()
