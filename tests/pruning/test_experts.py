"""Mixtures of experts, compared with loops over experts that only know the code of transformers."""

import copy
import re
import warnings

import pytest
import torch
import transformers
from torch.nn.functional import silu

from pruning import Settings, plan, prune, prune_folder
from pruning.cli import main
from pruning.model.ffn import find_ffns
from pruning.observe.capture import MIN_TOKENS, capture
from pruning.planning.rates import Rates
from pruning.prepare import warn_of_few_tokens

from tiny import VOCABULARY, assert_unchanged, outputs, state_of, tiny, tiny_tokenizer

COMMON = {"ratio": 1 / 3, "multiple_of": 8, "sample_size": 64, "batch_size": 24}
BLOCKS = {
    "MixtralForCausalLM": "mlp",
    "Qwen2MoeForCausalLM": "mlp",
    "GptOssForCausalLM": "mlp",
    "DeepseekV3ForCausalLM": "mlp",
    "Llama4ForCausalLM": "feed_forward",
    "GraniteMoeForCausalLM": "block_sparse_moe",
    "JetMoeForCausalLM": "mlp",
}
"""The name of the mixture within a layer of each class."""
TRANSPOSED = ("GptOssForCausalLM", "Llama4ForCausalLM")
"""Classes that store experts as `[E, in, out]`."""
WIDTHS = {
    "MixtralForCausalLM": {"intermediate_size": 16},
    "Qwen2MoeForCausalLM": {
        "intermediate_size": 32,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "GptOssForCausalLM": {"intermediate_size": 16},
    "DeepseekV3ForCausalLM": {"intermediate_size": 32, "moe_intermediate_size": 16},
    "Llama4ForCausalLM": {"intermediate_size": 16, "intermediate_size_mlp": 32},
    "GraniteMoeForCausalLM": {"intermediate_size": 16},
    "JetMoeForCausalLM": {"intermediate_size": 16},
}
"""The config of each class without a third of its neurons."""
every_class = pytest.mark.parametrize("class_name", BLOCKS)


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(3, VOCABULARY, (48, 16), generator=torch.Generator().manual_seed(5))


def weights(module, expert):
    """`[gate and up, d]` and `[d, N]` of one expert, and their biases."""
    if hasattr(module, "output_linear"):  # JetMoe
        return module.input_linear.weight[expert], module.output_linear.weight[expert], 0, 0
    fused, down = module.gate_up_proj[expert], module.down_proj[expert]
    if not hasattr(module, "gate_up_proj_bias"):
        is_transposed = type(module).__name__ == "Llama4TextExperts"
        return (fused.t(), down.t(), 0, 0) if is_transposed else (fused, down, 0, 0)
    return fused.t(), down.t(), module.gate_up_proj_bias[expert], module.down_proj_bias[expert]


@torch.no_grad()
def own_neurons(block, expert, read):
    """The neurons `[t, N]` of one expert and their weights `[t]`, for the inputs `[T, d]` of a mixture."""
    module = getattr(block, "experts", block)
    scale = torch.ones(len(read))
    if type(block).__name__ == "JetMoeMoE":
        index = block.router.layer(read).topk(block.router.top_k, dim=1).indices
        chosen = (index == expert).any(1)
    elif type(block).__name__ == "Llama4TextMoe":
        chosen = block.router(read)[1].argmax(1) == expert
        read = read * block.router(read)[0][:, expert, None]
    else:
        found = (block.router if hasattr(block, "router") else block.gate)(read)  # in an order of the version
        index = next(t for t in found if not t.is_floating_point())
        gates = next(t for t in found if t.is_floating_point() and t.shape == index.shape)
        chosen = (index == expert).any(1)
        scale = (gates * (index == expert)).sum(1)
    rows = read[chosen]
    fused, _, bias, _ = weights(module, expert)
    product = rows @ fused.t() + bias
    if type(block).__name__ == "GptOssMLP":
        gate, up = product[:, 0::2].clamp(max=7), product[:, 1::2].clamp(-7, 7)
        return (up + 1) * gate * torch.sigmoid(1.702 * gate), scale[chosen]
    gate, up = product.chunk(2, dim=1)
    return silu(gate) * up, scale[chosen]


@torch.no_grad()
def reads(model, tokens):
    """The inputs `[T, d]` of each mixture, by the name of the block."""
    found = {}

    def keep(name):
        return lambda _module, args: found.__setitem__(name, args[0].flatten(0, -2))

    names = [
        name
        for name, module in model.named_modules()
        if re.fullmatch(rf"model\.layers\.\d+\.{BLOCKS[type(model).__name__]}", name)
        and (hasattr(module, "router") or hasattr(module, "gate"))
    ]
    handles = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    outputs(model, tokens)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def silence(model, report):
    """Set the columns of the output projections of the dropped neurons to zero."""
    for layer in report.layers:
        *steps, last = layer.name.split(".")
        if last.isdecimal() and steps[-1] != "layers":  # an expert
            module = model.get_submodule(".".join(steps))
            owner = module.output_linear.weight if hasattr(module, "output_linear") else module.down_proj
            down = owner[int(last)]
            if type(model).__name__ in TRANSPOSED:
                down[layer.dropped] = 0
            else:
                down[:, layer.dropped] = 0
        else:
            model.get_submodule(layer.name).down_proj.weight[:, layer.dropped] = 0


def by_expert(report, block):
    return {
        int(layer.name.rpartition(".")[2]): layer
        for layer in report.layers
        if re.fullmatch(rf"{re.escape(block)}(\.experts)?\.\d+", layer.name)
    }


@pytest.mark.filterwarnings("ignore:calibration. fewer than")
@every_class
def test_pruning_silences_other_neurons_in_each_expert_and_reloads_to_the_bit(class_name, tokens, tmp_path):
    dense = tiny(class_name)
    pruned, silent = copy.deepcopy(dense), copy.deepcopy(dense)
    report = prune(pruned, None, calibration=tokens, repair="none", **COMMON)
    silence(silent, report)
    expected = outputs(silent, tokens)
    torch.testing.assert_close(outputs(pruned, tokens), expected, rtol=1e-4, atol=1e-5)
    assert (outputs(dense, tokens) - expected).abs().max() > 1e-2
    for name in reads(dense, tokens):
        check_experts(dense.get_submodule(name), pruned.get_submodule(name), by_expert(report, name))
    for entry, value in WIDTHS[class_name].items():
        assert getattr(pruned.config, entry) == value
    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, class_name).from_pretrained(tmp_path)
    assert_unchanged(loaded, state_of(pruned))
    assert torch.equal(outputs(loaded, tokens), outputs(pruned, tokens))


def check_experts(dense, pruned, layers):
    """Each expert keeps neurons of its own, in their order."""
    assert sorted(layers) == [0, 1, 2, 3]
    assert len({tuple(layer.kept.tolist()) for layer in layers.values()}) > 1
    for expert, layer in layers.items():
        kept = layer.kept
        before, after = (weights(getattr(block, "experts", block), expert) for block in (dense, pruned))
        pairs = torch.stack([2 * kept, 2 * kept + 1], 1).flatten()
        rows = pairs if type(dense).__name__ == "GptOssMLP" else torch.cat([kept, kept + 24])
        assert torch.equal(after[0], before[0][rows])
        assert torch.equal(after[1], before[1][:, kept])
        if type(dense).__name__ == "GptOssMLP":
            assert torch.equal(after[2], before[2][rows])
            assert torch.equal(after[3], before[3])


@every_class
def test_the_statistics_of_an_expert_are_those_of_its_tokens_weighted_by_squared_gates(class_name, tokens):
    model = tiny(class_name)
    ffns = [ffn for ffn in find_ffns(model) if ffn.is_routed]
    found = {s.name: s for s in capture(model, ffns, tokens.split(20), sample_size=16)}
    blocks, checked = reads(model, tokens), 0
    for name, read in blocks.items():
        for expert in range(4):
            z, gate = own_neurons(model.get_submodule(name), expert, read)
            inner = ".experts" if hasattr(model.get_submodule(name), "experts") else ""
            statistics = found[f"{name}{inner}.{expert}"]
            assert statistics.n_tokens == len(z)
            assert statistics.is_enough == (len(z) >= MIN_TOKENS)
            z, weight = z.detach().double(), gate.detach().double().square()
            weight = weight / weight.sum()
            mean = weight @ z
            covariance = (z - mean).t() @ ((z - mean) * weight[:, None])
            torch.testing.assert_close(statistics.mean, mean, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(statistics.covariance.double(), covariance, rtol=1e-3, atol=1e-6)
            # Each sampled row is that of a token, and none is taken twice. There is a power of two of them.
            distance = torch.cdist(statistics.sample.double(), z)
            assert len(statistics.sample) == 1 << min(16, len(z)).bit_length() - 1
            assert distance.min(1).values.max() < 1e-5
            assert len(set(distance.argmin(1).tolist())) == len(statistics.sample)
            checked += 1
    assert checked == 4 * len(blocks) > 0


@pytest.mark.parametrize(
    "class_name", ["MixtralForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM", "Llama4ForCausalLM"]
)
def test_padding_does_not_count_for_experts(class_name, tokens):
    model = tiny(class_name)
    lengths = [16, 5, 11, 2, 16, 9, 7, 3] * 3
    sequences = [row[:length] for row, length in zip(tokens, lengths, strict=False)]
    mask = torch.stack([(torch.arange(16) < length).long() for length in lengths])
    padded = [{"input_ids": tokens[:24] * mask, "attention_mask": mask}]
    ffns = find_ffns(model)
    one_by_one = capture(model, ffns, [s[None] for s in sequences], sample_size=4096)
    together = capture(model, ffns, padded, sample_size=4096)
    for one, other in zip(one_by_one, together, strict=True):
        assert one.n_tokens == other.n_tokens
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(one.covariance, other.covariance, rtol=1e-2, atol=1e-5)


def test_padding_is_refused_where_the_tokens_of_an_expert_are_not_known(tokens):
    model = tiny("JetMoeForCausalLM")
    before = state_of(model)
    mask = torch.ones_like(tokens)
    mask[::2, 10:] = 0
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.\d: expected \d+ tokens .* without padding"):
        prune(model, None, calibration={"input_ids": tokens, "attention_mask": mask}, **COMMON)
    assert_unchanged(model, before)


def test_padding_is_refused_there_whatever_else_the_model_reads(tokens):
    """Other inputs may explain other rows, but not those of experts."""
    model = tiny("JetMoeForCausalLM")
    mask = torch.ones_like(tokens)
    mask[::2, 10:] = 0
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    batch = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions}
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.\d: expected \d+ tokens .* without padding"):
        capture(model, find_ffns(model), [batch], sample_size=16)


@pytest.mark.parametrize(("dtype", "multiple", "step"), [("float32", 2, 4), ("bfloat16", 4, 8)])
def test_a_width_that_transformers_cannot_multiply_in_groups_is_refused(tokens, dtype, multiple, step):
    model = tiny("MixtralForCausalLM").to(getattr(torch, dtype))
    before = state_of(model)
    width, names = find_ffns(model)[0].width, f"a multiple of {step} for experts in {dtype}"
    options = COMMON | {"ratio": 1 - (width - multiple) / width, "multiple_of": multiple}
    assert width % step == 0
    with pytest.raises(ValueError, match=rf"multiple_of: expected {names}, .* got {multiple}, which keeps"):
        prune(model, None, calibration=tokens, **options)
    assert_unchanged(model, before)
    model.config.intermediate_size = width - multiple
    with pytest.raises(RuntimeError, match="multiple of 16 bytes"):  # which is why
        type(model)(model.config).to(model.dtype)(input_ids=tokens)


@pytest.mark.parametrize(
    "how",
    [
        ["--ratio=0.2", "--out=out"],
        ["--ratio=0.2", "--out=out", "--from-disk"],
        ["--ratio=0.2", "--plan"],
        ["--ratio=0.2", "--plan", "--from-disk"],
        ["--sweep=0.2,0.35"],
    ],
)
def test_the_narrower_dtype_says_which_widths_transformers_can_multiply(tmp_path, monkeypatch, capsys, how):
    """A result in bfloat16 needs multiples of 8, also if it was computed in float32, for which 4 would do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pruning.model.precision.working_dtype", lambda _device: torch.float32)
    tiny("MixtralForCausalLM").to(torch.bfloat16).save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    sizes = ["--sequence-length=32", "--calibration-tokens=512", "--device=cpu"]
    choice = ["--multiple-of=4", "--calibration=text.txt", *sizes]
    assert main(["model", *how, *choice]) == 1
    assert "multiple_of: expected a multiple of 8 for experts in bfloat16" in capsys.readouterr().err


def test_a_run_warns_of_few_tokens_where_the_plan_says_so(tmp_path):
    """Each of 4 experts sees the half of all tokens, since a token goes to 2 of them."""
    model = tiny("MixtralForCausalLM")
    model.save_pretrained(tmp_path)
    settings = Settings(ratio=0.3, multiple_of=4, repair="lstsq")
    needed = plan(tmp_path, settings=settings, device="cpu", rates=Rates(*[1.0] * 10)).needed_tokens
    assert needed == 4 * 16 * 2
    ffns = find_ffns(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_few_tokens(needed, ffns, settings)
    expected = rf"an expert, got {needed - 2} tokens, of which about 63 reach it; .* at least {needed} tokens"
    with pytest.warns(UserWarning, match=expected):
        warn_of_few_tokens(needed - 2, ffns, settings)


@pytest.mark.parametrize(("per_token", "share"), [(3, 0.75), (8, 1.0), ([2, 1], 0.25), (None, 0.25)])
def test_the_share_of_an_expert_is_what_the_config_says(per_token, share):
    model = tiny("MixtralForCausalLM")
    vars(model.config)["num_experts_per_tok"] = per_token
    assert {ffn.share for ffn in find_ffns(model)} == {share}


def unreached(tokens):
    """A GPT-OSS whose second layer sends no token to expert 3 and few to expert 2."""
    model = tiny("GptOssForCausalLM")
    router = model.model.layers[1].mlp.router
    with torch.no_grad():
        read = reads(model, tokens)["model.layers.1.mlp"]
        router.bias[3] = -1e4
        # As high as it takes for expert 2 to be among the first two for a few tokens.
        logits = read @ router.weight.t() + router.bias
        second = logits[:, :2].min(1).values - read @ router.weight[2]
        router.bias[2] = second.sort().values[20]
        index = router(read)[2]
    assert not (index == 3).any()
    assert 0 < int((index == 2).any(1).sum()) < MIN_TOKENS
    return model


@pytest.mark.parametrize(("repair", "dtype"), [("lstsq", torch.float32), ("sequential", torch.bfloat16)])
def test_experts_with_too_few_tokens_lose_the_smallest_neurons_unrepaired_with_a_warning(
    repair, dtype, tokens
):
    dense = unreached(tokens).to(dtype)
    pruned = copy.deepcopy(dense)
    name = "model.layers.1.mlp.experts"
    with pytest.warns(UserWarning, match=rf"tokens reached {re.escape(name)}\.2, {re.escape(name)}\.3;"):
        report = prune(pruned, None, calibration=tokens, repair=repair, **COMMON)
    layers = by_expert(report, "model.layers.1.mlp")
    assert [layers[expert].is_measured for expert in range(4)] == [True, True, False, False]
    assert layers[3].n_tokens == 0
    before, after = (model.model.layers[1].mlp.experts for model in (dense, pruned))
    for expert in (2, 3):
        fused, down, _, bias = weights(before, expert)
        squares = fused.float().square().sum(1)
        norms = squares[0::2] + squares[1::2] + down.float().square().sum(0)
        kept = norms.argsort()[8:].sort().values
        assert layers[expert].kept.tolist() == kept.tolist()
        torch.testing.assert_close(layers[expert].saliency, norms.sqrt()[layers[expert].dropped])
        assert torch.equal(weights(after, expert)[1], down[:, kept])
        assert torch.equal(weights(after, expert)[3], bias)
    for expert in (0, 1):
        assert not torch.equal(weights(after, expert)[1], weights(before, expert)[1][:, layers[expert].kept])


@pytest.mark.parametrize("class_name", ["MixtralForCausalLM", "GptOssForCausalLM"])
def test_with_little_penalty_sequential_repair_is_nearer_to_the_dense_stream_than_least_squares_and_none(
    class_name, tokens, monkeypatch
):
    monkeypatch.setattr("pruning.repair.ridge.DEPENDENCE", 0.0)

    def last(model):
        with torch.no_grad():
            return model.model(input_ids=tokens).last_hidden_state

    dense, error = last(tiny(class_name)), {}
    for repair in ("none", "lstsq", "sequential"):
        model = tiny(class_name)
        prune(model, None, calibration=tokens, repair=repair, criterion="magnitude", **COMMON)
        error[repair] = float((last(model) - dense).norm())
    assert error["sequential"] < error["lstsq"] < error["none"]


@pytest.mark.filterwarnings("ignore:calibration. fewer than")
def test_experts_with_too_few_tokens_are_pruned_from_disk_as_in_memory(tokens, tmp_path):
    model = unreached(tokens)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    settings = Settings(**COMMON)
    found = prune_folder(
        tmp_path / "model", tmp_path / "out", calibration=tokens, settings=settings, device="cpu"
    )
    expected = prune(model, None, calibration=tokens, settings=settings)
    assert not all(layer.is_measured for layer in found.layers)
    written, wanted = (str([layer.as_json() for layer in report.layers]) for report in (found, expected))
    assert written == wanted  # as text: NaN is NaN


@pytest.mark.filterwarnings("ignore:calibration. fewer than")
def test_statistics_from_a_file_give_the_same_model_and_know_which_experts_had_too_few_tokens(
    tokens, tmp_path
):
    path = tmp_path / "statistics.safetensors"
    first = unreached(tokens)
    second = copy.deepcopy(first)
    options = COMMON | {"repair": "lstsq"}
    reports = [
        prune(first, None, calibration=tokens, save_statistics=path, **options),
        prune(second, None, statistics=path, **options),
    ]
    assert_unchanged(second, state_of(first))
    found = [[(layer.kept.tolist(), layer.n_tokens) for layer in report.layers] for report in reports]
    assert found[0] == found[1]
    assert [layer.is_measured for layer in reports[1].layers] == [True] * 6 + [False] * 2


def test_the_implementation_of_experts_is_what_it_was_before(tokens):
    model = tiny("MixtralForCausalLM")
    model.set_experts_implementation("grouped_mm")
    prune(model, None, calibration=tokens, repair="none", **COMMON)
    assert model.get_experts_implementation() == {"": "grouped_mm"}


def test_unequal_budgets_are_refused_for_experts(tokens):
    with pytest.raises(ValueError, match="budget: expected 'uniform' for a model with experts"):
        prune(tiny("MixtralForCausalLM"), None, calibration=tokens, budget="kl", **COMMON)
