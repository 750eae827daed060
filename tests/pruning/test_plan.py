"""What a run will take, from the config alone."""

import gc
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pruning import Settings, pipeline, plan, prune, prune_folder
from pruning.cli import main
from pruning.model.headers import read_header
from pruning.planning import plan as planning
from pruning.planning import prediction
from pruning.planning.available import own_memory
from pruning.planning.rates import Rates, Sizes
from pruning.report.save import save_pruned

from tiny import tiny, tiny_model, tiny_tokenizer

RATES = Rates(1e12, 1e12, 1e11, 1e11, 1e10, 1e10, 1e-5, 1e-6, 1e9, 1e9)
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
LARGE = {
    "70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    },
    "405B": {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    },
}
PARAMETERS = {"70B": 70_553_706_496, "405B": 405_853_388_800}
"""Of Llama 3 and 3.1, as their publisher counts them."""


def expected_files(config, width):
    """The bytes of every weight of a Llama in bfloat16, by file."""
    d, layers = config["hidden_size"], config["num_hidden_layers"]
    keys = config["num_key_value_heads"] * d // config["num_attention_heads"]
    end = {"model.embed_tokens.weight", "lm_head.weight"}
    files = [dict.fromkeys(end, config["vocab_size"] * d) | {"model.norm.weight": d}]
    inside = dict.fromkeys(("self_attn.q_proj", "self_attn.o_proj"), d * d)
    inside |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), keys * d)
    inside |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), width * d)
    inside |= dict.fromkeys(("input_layernorm", "post_attention_layernorm"), d)
    files += [{f"model.layers.{i}.{n}.weight": size for n, size in inside.items()} for i in range(layers)]
    names = [f"model-{i + 1:05d}-of-{layers + 1:05d}.safetensors" for i in range(layers + 1)]
    return {name: {n: 2 * s for n, s in file.items()} for name, file in zip(names, files, strict=True)}


@pytest.mark.parametrize("size", LARGE)
def test_every_weight_of_a_very_large_model_is_known_without_memory_for_it(size, tmp_path):
    config = LLAMA | LARGE[size]
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = own_memory()
    found = plan(tmp_path, settings=Settings(ratio=0.25), device="cpu", rates=RATES)
    assert own_memory() - before < 3e8
    assert found.shapes.parameters[0] == PARAMETERS[size]
    assert found.shapes.bytes[0] == 2 * PARAMETERS[size]
    width = config["intermediate_size"] * 3 // 4
    assert found.shapes.files == expected_files(config, width)
    dropped = 3 * config["hidden_size"] * config["num_hidden_layers"] * config["intermediate_size"] // 4
    assert found.shapes.parameters[1] == PARAMETERS[size] - dropped
    assert found.needed_tokens == 4 * width
    assert found.least_ratio == pytest.approx(1 - 57_344 / 4 / config["intermediate_size"])
    assert found.memory > 2 * max(sum(file.values()) for file in expected_files(config, width).values())


@pytest.mark.parametrize(
    ("class_name", "dtype", "options"),
    [
        ("LlamaForCausalLM", torch.float32, {}),
        ("LlamaForCausalLM", torch.float32, {"repair": "bias"}),
        ("MixtralForCausalLM", torch.float32, {}),
        ("Qwen2MoeForCausalLM", torch.float32, {"only": "moe_intermediate_size"}),
        ("GPT2LMHeadModel", torch.float32, {}),
        ("DeepseekV3ForCausalLM", torch.bfloat16, {}),
        ("BertModel", torch.float32, {"repair": "lstsq"}),
    ],
)
def test_the_files_are_those_that_a_run_from_disk_writes(class_name, dtype, options, tmp_path, windows):
    tiny(class_name).to(dtype).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    settings = Settings(ratio=0.25, multiple_of=4, sample_size=128, **options)
    found = plan(tmp_path / "model", settings=settings, device="cpu", rates=RATES)
    prune_folder(tmp_path / "model", tmp_path / "out", calibration=windows, settings=settings, device="cpu")
    size = {"F32": 4, "BF16": 2, "I64": 8, "BOOL": 1}
    written = {
        file.name: {
            name: torch.Size(entry.shape).numel() * size[entry.dtype]
            for name, entry in read_header(file).items()
        }
        for file in (tmp_path / "out").glob("*.safetensors")
    }
    assert found.shapes.files == written


@pytest.mark.parametrize(
    ("repair", "budget", "refine"),
    [
        ("sequential", "uniform", False),
        ("sequential", "uniform", True),
        ("lstsq", "uniform", False),
        ("lstsq", "kl", False),
    ],
)
def test_the_operations_are_those_that_torch_counts(repair, budget, refine, tmp_path, windows):
    """Of products; torch does not count decompositions, and products of integers."""
    entries = {"intermediate_size": 1024, "hidden_size": 64, "num_hidden_layers": 2}
    model = tiny("LlamaForCausalLM", **entries)
    model.save_pretrained(tmp_path)
    ids = windows.repeat(3, 1)
    options = {"calibration_tokens": ids.numel(), "sequence_length": ids.shape[1], "batch_size": 4}
    options |= {"repair": repair, "budget": budget, "refine": refine}
    settings = Settings(ratio=0.25, sample_size=64, criterion="flap", **options)

    def in_place(_total, a, b, **_options):
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        prune(model, None, calibration=ids, settings=settings)
    flops = replace(RATES, product=1.0, product32=1.0, factor32=1e30, factor64=1e30, product64=1e30)
    flops = replace(flops, stream=1e30, step=0.0, pair=0.0, read=1e30, write=1e30)
    found = plan(tmp_path, settings=settings, device="cpu", rates=flops)
    assert found.seconds == pytest.approx(counter.get_total_flops(), rel=0.1)


def test_rates_that_are_twice_as_high_take_half_the_time(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path)
    fast = Rates(*(value / 2 if n in ("step", "pair") else value * 2 for n, value in vars(RATES).items()))
    slow, fast = (plan(tmp_path, device="cpu", rates=rates) for rates in (RATES, fast))
    assert slow.seconds == pytest.approx(2 * fast.seconds)
    assert [stage.name for stage in slow.stages] == ["capture", "measure", "select", "repair"]
    assert all(stage.seconds > 0 for stage in slow.stages)


def test_from_disk_takes_less_memory_than_the_whole_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | LARGE["70B"] | {"num_hidden_layers": 20}))
    disk, memory = (plan(tmp_path, from_disk=how, device="cpu", rates=RATES) for how in (True, False))
    assert memory.memory - disk.memory > 0.8 * memory.shapes.bytes[0]


def live_storages():
    """The bytes of each storage of tensors that Python knows of, by address."""
    gc.collect()
    found = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.device.type == "cpu"]
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in found}


@pytest.mark.parametrize("from_disk", [False, True])
@pytest.mark.parametrize("repair", ["none", "sequential"])
def test_what_a_run_holds_of_all_layers_is_planned_for(repair, from_disk, tmp_path, monkeypatch, windows):
    """In memory the dense FFN weights wait for an error until all are pruned."""
    others, held = live_storages().keys(), []
    entries = {"hidden_size": 512, "intermediate_size": 256, "num_hidden_layers": 16, "head_dim": 8}
    model = tiny("LlamaForCausalLM", **entries)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    end = pipeline._shrink

    def spy(*args):
        held.append(sum(size for address, size in live_storages().items() if address not in others))
        end(*args)

    monkeypatch.setattr(pipeline, "_shrink", spy)
    monkeypatch.setattr(prediction, "own_memory", lambda: 0)
    options = {"calibration_tokens": windows.numel(), "sequence_length": windows.shape[1], "batch_size": 1}
    settings = Settings(repair=repair, ratio=0.25, sample_size=64, criterion="magnitude", **options)
    if from_disk:
        del model
        prune_folder(tmp_path / "model", tmp_path / "out", calibration=windows, settings=settings)
    else:
        prune(model, None, calibration=windows, settings=settings)
    found = plan(tmp_path / "model", settings=settings, from_disk=from_disk, device="cpu", rates=RATES)
    assert held[0] <= found.memory
    if from_disk:
        assert found.memory < 0.5 * found.shapes.bytes[0]
    else:
        assert held[0] > found.shapes.bytes[0] + 4 * 16 * 3 * 192 * 512
        assert found.memory < 1.2 * held[0]


@pytest.mark.parametrize(
    ("repair", "refine"), [("sequential", False), ("sequential", True), ("lstsq", False)]
)
def test_hidden_states_that_exceed_the_budget_are_on_disk_and_not_in_memory(
    tmp_path, monkeypatch, repair, refine
):
    monkeypatch.setattr(prediction, "own_memory", lambda: 0)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | LARGE["70B"]))
    settings = Settings(repair=repair, refine=refine)
    options = {"device": "cpu", "dtype": torch.float32, "rates": RATES}
    whole = plan(tmp_path, settings=settings, **options)
    states = 4 * 57_344 * LARGE["70B"]["hidden_size"]
    kept = states * (1 if repair == "lstsq" else 6 if refine else 3)
    for budget in (1, states, 100 * states):
        limited = plan(tmp_path, settings=replace(settings, memory_budget=budget), **options)
        exceeding = max(0, kept - budget)
        stages = {stage.name: stage.memory for stage in limited.stages}
        before = {stage.name: stage.memory for stage in whole.stages}
        assert before["repair"] - stages["repair"] == exceeding
        assert limited.memory <= whole.memory
        assert limited.disk - whole.disk == exceeding
        assert (limited.seconds > whole.seconds) is (exceeding > 0)


@pytest.mark.parametrize(("what", "advice"), [("memory", "--calibration-tokens"), ("disk", "make room")])
def test_what_does_not_fit_is_refused_with_what_is_missing(tmp_path, monkeypatch, what, advice):
    tiny_model("Llama").save_pretrained(tmp_path)
    needed = getattr(plan(tmp_path, device="cpu", rates=RATES), what)
    if what == "memory":
        monkeypatch.setattr(prediction, "own_memory", lambda: 0)
        needed = plan(tmp_path, device="cpu", rates=RATES).memory
        monkeypatch.setattr(planning, "free_memory", lambda _device: needed - 10**7)
    else:
        usage = shutil.disk_usage(tmp_path)._replace(free=needed - 10**7)
        monkeypatch.setattr(planning.shutil, "disk_usage", lambda _folder: usage)
    found = plan(tmp_path, device="cpu", rates=RATES)
    with pytest.raises(ValueError, match=rf"{what}: expected .* 0\.01 GB are missing; .*{advice}"):
        found.check()


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with config\.json"):
        plan(tmp_path)


def test_the_command_shows_the_plan_and_fails_if_it_does_not_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(LLAMA | LARGE["70B"] | {"num_hidden_layers": 8})
    )
    monkeypatch.setattr(planning, "measure_rates", lambda *_args: RATES)
    monkeypatch.setattr(planning, "free_memory", lambda _device: 10**9)
    assert main(["model", "--plan", "--from-disk", "--device=cpu"]) == 1
    printed = capsys.readouterr()
    assert "LlamaForCausalLM, 8.95 billion parameters in bfloat16 (17.89 GB)" in printed.out
    assert printed.err.startswith("mi-prune: memory: expected ")
    assert "GB are missing; use fewer --calibration-tokens" in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_command_measures_this_machine_and_prints_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = Sizes(product=64, factor=128, stream=1024, pairs=16, few=64)
    less = {"SECONDS": 1e-6, "FILE_BYTES": 2**16, "ON_CPU": sizes}
    for name, value in less.items():
        monkeypatch.setattr(f"pruning.planning.rates.{name}", value)
    tiny_model("Llama").save_pretrained("model")
    assert main(["model", "--plan", "--device=cpu", "--json", "--calibration-tokens=512"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(rate > 0 for rate in found["rates"].values())
    assert found["n_tokens"] == 512
    with pytest.raises(SystemExit):
        main(["model", "--json", "--out=out"])


def test_what_the_run_refuses_or_does_not_do_is_not_planned_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "measure_rates", lambda *_args: RATES)
    tiny_model("Llama").save_pretrained(tmp_path)
    for options, message in (
        (["--from-disk", "--verify"], "--verify: expected none with --from-disk"),
        (
            ["--from-disk", "--budget=kl"],
            "budget: expected 'uniform' or 'mi' for a model that is pruned from disk",
        ),
        (["--statistics=absent"], "--statistics: expected none with --plan"),
        (["--resume"], "--resume: expected --from-disk with it, got none"),
        (["--report=page.txt"], "--report: expected the name of a file that ends with .html"),
    ):
        assert main([str(tmp_path), "--plan", "--device=cpu", *options]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--plan", "--sweep=0.2,0.5"])
    assert "--sweep: expected none with --plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("class_name", "options"),
    [
        ("Phi3ForCausalLM", {"repair": "bias"}),
        ("MixtralForCausalLM", {"budget": "mi"}),
        ("MixtralForCausalLM", {"refine": True}),
        ("MixtralForCausalLM", {"multiple_of": 1, "ratio": 0.3}),
        ("LlamaForCausalLM", {"budget": "mi", "ratio": 0.7, "max_layer_ratio": 0.5}),
        ("LlamaForCausalLM", {"criterion": "random-pairs", "clusters": 100}),
        ("LlamaForCausalLM", {"ratio": 0.01}),
    ],
)
def test_settings_that_do_not_suit_the_shapes_are_refused_as_in_the_run(
    class_name, options, tmp_path, windows
):
    model = tiny(class_name)
    model.save_pretrained(tmp_path)
    settings = Settings(**{"ratio": 0.4, "multiple_of": 8} | options)
    with pytest.raises(ValueError, match=r"expected .*, got") as run:
        prune(model, None, calibration=windows, settings=settings)
    with pytest.raises(ValueError, match=re.escape(str(run.value))):
        plan(tmp_path, settings=settings, rates=RATES)


def test_refining_is_planned_for_where_the_ffn_runs_alone(tmp_path):
    for class_name in ("LlamaForCausalLM", "GPT2LMHeadModel", "Phi3ForCausalLM", "BertModel"):
        tiny(class_name).save_pretrained(tmp_path)
        plan(tmp_path, settings=Settings(refine=True, multiple_of=4), rates=RATES)


def test_what_is_measured_of_all_layers_before_one_is_pruned_needs_space(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path)
    options = {"rates": RATES, "from_disk": False, "device": "cpu"}
    plain, saved, drawn, budget = (
        plan(tmp_path, settings=Settings(sample_size=64, multiple_of=2, **settings), **more, **options).disk
        for settings, more in (
            ({}, {}),
            ({}, {"save_statistics": True}),
            ({"criterion": "random-pairs", "threshold": 0.0, "candidates": 2}, {}),
            ({"budget": "mi"}, {}),
        )
    )
    assert saved - plain == drawn - plain == budget - plain == 3 * (8 * 40**2 + 4 * 64 * 40)


def test_an_encoder_decoder_is_not_planned_for(tmp_path):
    tiny("T5ForConditionalGeneration").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"expected FFNs in one list of layers to plan for, .* may work"):
        plan(tmp_path, settings=Settings(repair="lstsq", multiple_of=2), rates=RATES, from_disk=False)


def test_layers_of_different_widths_are_refused_from_disk_as_by_the_run(tmp_path, windows):
    model, settings = tiny_model("Llama"), Settings(ratio=0.25, multiple_of=2)
    report = prune(model, None, calibration=windows, settings=replace(settings, budget="mi"))
    assert len({len(layer.kept) for layer in report.layers}) > 1
    save_pruned(model, tiny_tokenizer(), report, tmp_path / "model")
    plan(tmp_path / "model", settings=settings, rates=RATES, from_disk=False, device="cpu")
    expected = (
        r"model: expected layers of one width to prune from disk, got others; load the model into memory"
    )
    with pytest.raises(ValueError, match=expected):
        plan(tmp_path / "model", settings=settings, rates=RATES, from_disk=True, device="cpu")
    with pytest.raises(ValueError, match=expected):
        prune_folder(tmp_path / "model", tmp_path / "out", calibration=windows, settings=settings)
