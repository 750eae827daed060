"""Every code block of the README and the guides runs as printed, on a tiny model and a small text."""

import re
import runpy
import shlex
import tomllib
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.run import get_args_parser

from mikernels.cli import main as mikernels_main
from pruning.cli import main
from pruning.planning import plan
from pruning.planning.rates import Rates
from pruning.report_command import main as mi_report

from tiny import reload_here

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"<!-- needs: ([\w ]+) -->")
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(page.read_text("utf-8")) if found == language]


def commands(page: Path) -> list[str]:
    """The lines of all shell blocks, without comments, continued lines joined."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in (line.partition(" #")[0].strip() for line in lines) if line]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder in which the names that the pages use exist: MODEL, my_text.txt, other_text.txt and expression.csv."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "MODEL")
    alphabet = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path / "MODEL")
    text = (ROOT / "LICENSE").read_text("utf-8")
    (tmp_path / "my_text.txt").write_text(text, "utf-8")
    (tmp_path / "other_text.txt").write_text(text[::-1], "utf-8")
    genes = torch.randn(64, 4).tolist()
    lines = ["TP53,MYC,GATA1,SOX2", *(",".join(map(str, row)) for row in genes)]
    (tmp_path / "expression.csv").write_text("\n".join(lines), "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "measure_rates", lambda *_: Rates(*[1.0] * len(fields(Rates))))  # takes seconds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few tokens: the text is short
        yield tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, workplace):
    for packages in NEEDS.findall(page.read_text("utf-8")):
        for package in packages.split():
            pytest.importorskip(package)
    namespace: dict[str, object] = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), namespace)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run_in_order(page, workplace, monkeypatch):
    reload_here(monkeypatch)
    for command in commands(page):
        program, *arguments = shlex.split(command)
        if program == "torchrun":  # as one process
            arguments = arguments[arguments.index("pruning.cli") + 1 :]
        if program in ("mi-prune", "torchrun"):
            assert main([*arguments, "--quiet"]) == 0, command
        elif program == "mi-report":
            assert mi_report(arguments) == 0, command
        elif program == "mikernels":
            fewer = [] if "--matrix" in arguments else ["--draws=10000"]
            assert mikernels_main([*arguments, "--quiet", *fewer]) == 0, command


def test_torchrun_knows_its_arguments():
    found = [shlex.split(c)[1:] for page in PAGES for c in commands(page) if c.startswith("torchrun ")]
    assert found
    for arguments in found:
        known = get_args_parser().parse_args(arguments)
        assert known.module
        assert known.training_script == "pruning.cli"


def module_commands() -> list[str]:
    found = {command for page in PAGES for command in commands(page) if command.startswith("python -m ")}
    return sorted(found)


@pytest.mark.parametrize("command", module_commands())
def test_modules_accept_their_arguments(command, monkeypatch, capsys):
    """The module exists and its parser knows every flag; a measurement itself would take hours."""
    _, _, module, *arguments = shlex.split(command)
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a module that was imported before
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")
    text = capsys.readouterr().out
    assert not ended.value.code
    assert text.startswith("usage: ")
    assert all(flag in text for flag in flags), text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_and_extras_exist(page):
    makefile = (ROOT / "Makefile").read_text("utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for command in commands(page):
        program, *arguments = shlex.split(command)
        if program == "make":
            targets = [argument for argument in arguments if "=" not in argument]
            assert all(f"\n{target}:" in makefile for target in targets), command
        elif program == "pip":
            named = re.findall(r"\[([\w,]+)\]", command)
            assert all(extra in extras for names in named for extra in names.split(",")), command
        else:
            known = (
                "mi-prune",
                "mi-report",
                "mikernels",
                "torchrun",
                "python",
                "git",
                "cd",
                "TRITON_INTERPRET=1",
            )
            assert program in known, command


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_readme_fits_one_screen_of_reading():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
