"""Several ratios from one walk over the calibration."""

import copy
import json

import pytest

from pruning import prune, sweep
from pruning.cli import main
from pruning.model.size import count_parameters, weight_bytes
from pruning.observe.batches import Windows
from pruning.report.quality import log_ratio_error, perplexity

from tiny import assert_unchanged, state_of, tiny, tiny_model, tiny_tokenizer

OPTIONS = {"multiple_of": 2, "sample_size": 128}


@pytest.mark.parametrize(
    "options",
    [{}, {"repair": "lstsq"}, {"budget": "mi"}, {"budget": "kl", "repair": "lstsq"}, {"repair": "bias"}],
)
def test_each_row_is_what_pruning_to_that_ratio_gives(options, windows):
    model = tiny_model("Llama")
    before, text = state_of(model), {"held back": Windows(list(windows[:8]))}
    found = sweep(model, None, [0.5, 0.2], calibration=windows[8:], texts=text, **OPTIONS, **options)
    assert_unchanged(model, before)
    dense = perplexity(model, [windows[:8]])
    assert [row.ratio for row in found] == [0, 0.2, 0.5]
    assert found[0].perplexity == {"held back": pytest.approx(dense.value)}
    assert (found[0].parameters, found[0].bytes) == (count_parameters(model), weight_bytes(model))
    for row in found[1:]:
        pruned = copy.deepcopy(model)
        report = prune(pruned, None, calibration=windows[8:], ratio=row.ratio, **OPTIONS, **options)
        assert row.widths == report.widths
        assert (row.parameters, row.bytes) == (count_parameters(pruned), weight_bytes(pruned))
        after = perplexity(pruned, [windows[:8]])
        assert row.perplexity["held back"] == pytest.approx(after.value, rel=1e-4)
        assert row.change_error["held back"] == pytest.approx(log_ratio_error(dense, after), rel=1e-2)


def test_the_neurons_are_measured_once_for_all_ratios(windows, monkeypatch):
    from pruning import sweeping

    gathered, gather = [], sweeping.gather_evidence

    def spy(*args, **options):
        gathered.append(args[3].ratio)
        return gather(*args, **options)

    monkeypatch.setattr(sweeping, "gather_evidence", spy)
    sweep(tiny_model("Llama"), None, [0.1, 0.5, 0.3], calibration=windows, texts={}, **OPTIONS)
    assert gathered == [0.5]


def test_an_encoder_is_compared_by_its_hidden_states(windows):
    text = {"held back": Windows(list(windows[:8]))}
    found = sweep(tiny("BertModel"), None, [0.2, 0.6], calibration=windows, texts=text, **OPTIONS)
    cosines = [row.hidden_state_cosine["held back"] for row in found]
    assert cosines[0] == pytest.approx(1)
    assert cosines[0] > cosines[1] > cosines[2]
    assert found[1].perplexity == {}


def test_a_ratio_that_rounding_makes_unreachable_is_refused_before_anything_runs(windows):
    with pytest.raises(ValueError, match=r"ratio=0\.001"):
        sweep(tiny_model("Llama"), None, [0.5, 0.001], calibration=windows, texts={}, multiple_of=2)
    with pytest.raises(ValueError, match="target_params: expected none beside the ratios of a sweep, got 9"):
        sweep(tiny_model("Llama"), None, [0.5], calibration=windows, target_params=9)
    with pytest.raises(ValueError, match="sweep: expected at least one ratio"):
        sweep(tiny_model("Llama"), None, [], calibration=windows)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model("Llama").save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    return tmp_path


COMMAND = ["model", "--sweep=0.2,0.5", "--calibration=text.txt", "--sequence-length=32", "--multiple-of=2"]
SIZES = ["--calibration-tokens=512", "--evaluation-tokens=256", "--device=cpu", "--quiet"]


def test_the_command_prints_a_table_or_json_and_saves_nothing(folder, capsys):
    before = {path.name for path in folder.iterdir()}
    assert main([*COMMAND, *SIZES]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split()[:3] == ["ratio", "neurons", "widths"]
    assert [line.split()[:3] for line in printed[2:]] == [
        ["0", "120", "40"],
        ["0.2", "96", "32"],
        ["0.5", "60", "20"],
    ]
    assert main([*COMMAND, *SIZES, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["sweep"]
    assert [row["widths"] for row in rows] == [[40] * 3, [32] * 3, [20] * 3]
    assert rows[0]["perplexity"].keys() == {"builtin"}
    assert {path.name for path in folder.iterdir()} == before


def test_the_command_refuses_what_needs_one_result(folder, capsys):
    assert main([*COMMAND, *SIZES, "--out=out"]) == 1
    assert "--out: expected none with --sweep" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*COMMAND, *SIZES, "--ratio=0.3"])
    with pytest.raises(SystemExit):
        main(["model"])


def test_a_row_is_of_the_values_that_a_result_would_hold(tmp_path, capsys):
    """The weights are in float16, the computation on a CPU in float32."""
    tiny_model("Llama").half().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    options = [
        str(tmp_path / "model"),
        "--device=cpu",
        "--multiple-of=2",
        "--calibration-tokens=512",
        "--quiet",
    ]
    options += [
        "--sequence-length=32",
        "--calibration=builtin",
        "--evaluate=builtin",
        "--evaluation-tokens=512",
    ]
    assert main([*options, "--sweep=0.5", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)["sweep"][1]
    assert main([*options, "--ratio=0.5", f"--out={tmp_path / 'out'}"]) == 0
    manifest = json.loads((tmp_path / "out" / "mi_prune.json").read_text())
    assert row["perplexity"]["builtin"] == manifest["evaluation"]["texts"][0]["perplexity_pruned"]
