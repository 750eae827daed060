"""What depends on the device of the model, on a GPU: the choice, the repair, memory budgets, offloading."""

import accelerate
import pytest
import torch
import torch.distributed as dist

from mikernels.ranks import Ranks
from pruning import Settings, plan, prune
from pruning.choose.elimination import conditional_mi
from pruning.cli import main
from pruning.observe.moments import add_gram, add_product, mirror
from pruning.observe.samples import sample_sequences
from pruning.report.quality import perplexity

from tiny import outputs, tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPTIONS = {"ratio": 0.25, "multiple_of": 4, "sample_size": 128}


def pruned(name, device, windows, **options):
    model = tiny(name).to(device)
    report = prune(model, None, calibration=windows, **OPTIONS | options)
    return model, report


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LlamaForCausalLM", {}),
        ("LlamaForCausalLM", {"repair": "lstsq", "budget": "mi"}),
        ("LlamaForCausalLM", {"budget": "kl"}),
        ("LlamaForCausalLM", {"criterion": "pairwise-mi", "repair": "bias"}),
        ("LlamaForCausalLM", {"criterion": "random-pairs", "repair": "none"}),
        ("LlamaForCausalLM", {"criterion": "flap"}),
        ("LlamaForCausalLM", {"criterion": "random-pairs", "candidates": 3}),
        ("LlamaForCausalLM", {"criterion": "random-pairs", "clusters": 2}),
        ("MixtralForCausalLM", {}),
        ("GPT2LMHeadModel", {}),
        ("BertModel", {}),
    ],
)
def test_a_gpu_chooses_and_repairs_as_a_cpu_does(windows, name, options):
    on_cpu, expected = pruned(name, "cpu", windows, **options)
    on_gpu, report = pruned(name, "cuda", windows, **options)
    for layer, same in zip(report.layers, expected.layers, strict=True):
        assert torch.equal(layer.kept.cpu(), same.kept)
    assert all(p.is_cuda for p in on_gpu.parameters())
    torch.testing.assert_close(
        outputs(on_gpu, windows.cuda()).cpu(), outputs(on_cpu, windows), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e10])
def test_moments_on_the_tensor_cores_have_16_bits(scale):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3000, 1100, generator=generator) * torch.logspace(-4, 4, 1100) * scale
    other = torch.randn(3000, 70, generator=generator)
    exact, product = values.double().t() @ values.double(), values.double().t() @ other.double()
    gram, cross = torch.zeros(1100, 1100, device="cuda"), torch.zeros(1100, 70, device="cuda")
    add_gram(gram, values.cuda())
    add_product(cross, values.cuda(), other.cuda())
    norms = exact.diagonal().sqrt()
    error = (mirror(gram).cpu().double() - exact) / torch.outer(norms, norms)
    assert error.abs().max() < 2e-5
    error = (cross.cpu().double() - product) / torch.outer(norms, other.double().norm(dim=0))
    assert error.abs().max() < 2e-5


@pytest.mark.parametrize("n_drop", [100, 700, 1100])
def test_steps_that_are_replayed_drop_as_those_on_a_cpu(n_drop):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 1100, generator=generator) @ torch.randn(1100, 1100, generator=generator)
    weight = torch.randn(300, 1100, generator=generator)
    found, expected = (
        conditional_mi((z.t() @ z / len(z)).to(device), weight.to(device), n_drop)
        for device in ("cuda", "cpu")
    )
    assert (found.order.cpu() == expected.order).double().mean() > 0.95  # rounding exchanges near ties
    torch.testing.assert_close(found.damage.cpu(), expected.damage, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_steps_are_replayed_on_every_gpu():
    covariance, weight = (
        torch.eye(1100) + 0.3,
        torch.randn(50, 1100, generator=torch.Generator().manual_seed(0)),
    )
    orders = [conditional_mi(covariance.to(f"cuda:{i}"), weight.to(f"cuda:{i}"), 700).order for i in (0, 1)]
    assert torch.equal(orders[0].cpu(), orders[1].cpu())
    assert len(torch.unique(orders[1])) == 700


def test_refining_on_a_gpu_loses_no_more_than_on_a_cpu(windows):
    losses = {}
    for device in ("cpu", "cuda"):
        model, _ = pruned("LlamaForCausalLM", device, windows, refine=True)
        losses[device] = perplexity(model, windows.to(device).split(4)).value
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)


@pytest.mark.parametrize("budget", [1, 5 * 4 * 16 * 16 * 4])
def test_hidden_states_beyond_the_budget_wait_on_the_cpu(windows, budget):
    whole, _ = pruned("LlamaForCausalLM", "cuda", windows, refine=True)
    limited, _ = pruned("LlamaForCausalLM", "cuda", windows, refine=True, memory_budget=budget)
    for (name, value), other in zip(whole.state_dict().items(), limited.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_what_is_offloaded_from_the_gpu_is_pruned_to_the_same_bits(windows):
    whole, _ = pruned("LlamaForCausalLM", "cuda", windows)
    offloaded = tiny("LlamaForCausalLM")
    accelerate.cpu_offload(offloaded, execution_device="cuda")
    prune(offloaded, None, calibration=windows, **OPTIONS)
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    assert torch.equal(outputs(whole, windows.cuda()), outputs(offloaded, windows.cuda()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(windows, dtype):
    exact, _ = pruned("LlamaForCausalLM", "cuda", windows)
    model = tiny("LlamaForCausalLM").to("cuda", dtype)
    prune(model, None, calibration=windows, **OPTIONS)
    assert {p.dtype for p in model.parameters()} == {dtype}
    values = [perplexity(m, windows.cuda().split(4)).value for m in (exact, model)]
    assert values[1] == pytest.approx(values[0], rel=0.05)


def test_samples_are_seeded(tmp_path):
    model, tokenizer = tiny_model("Llama").cuda(), tiny_tokenizer()
    runs = [
        sample_sequences(model, tokenizer, n_tokens=256, length=32, bos=True, seed=seed) for seed in (1, 1, 2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


@pytest.mark.parametrize("extra", [[], ["--from-disk"], ["--refine"]])
def test_the_command_prunes_on_the_gpu_and_its_result_reloads(tmp_path, capsys, extra):
    tiny_model("Llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{i} times {i} is {i * i}." for i in range(2000)))
    options = ["--ratio", "0.25", "--multiple-of", "4", "--sample-size", "128", "--calibration", str(text)]
    words = [str(tmp_path / "model"), "--out", str(tmp_path / "out"), *options, *extra]
    assert main([*words, "--sequence-length", "32", "--calibration-tokens", "2048"]) in (0, None)
    assert list((tmp_path / "out").glob("*.safetensors"))


def test_a_plan_measures_the_gpu(tmp_path):
    tiny_model("Llama").save_pretrained(tmp_path)
    found = plan(tmp_path, device="cuda", settings=Settings(calibration_tokens=2048, sequence_length=32))
    assert found.free_memory > 10**9
    assert found.seconds > 0


def test_nccl_takes_what_processes_exchange():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ranks = Ranks(dist.group.WORLD)
        ranks._vote()
        assert ranks._gather({"a": 1}) == [{"a": 1}]
        box = [{"b": 2}]
        ranks._exchange(dist.broadcast_object_list, box, group_src=0, device=ranks._device)
        values = torch.arange(6, dtype=torch.bfloat16, device="cuda").view(2, 3)
        ranks._exchange(dist.broadcast, values.view(torch.uint8), group_src=0)
        parts = [torch.empty_like(values)]
        ranks._exchange(dist.all_gather, [p.view(torch.uint8) for p in parts], values.view(torch.uint8))
        assert torch.equal(parts[0], values)
        for dtype in (torch.float64, torch.float32, torch.int64):
            ranks._exchange(dist.all_reduce, values.to(dtype))
    finally:
        dist.destroy_process_group()
