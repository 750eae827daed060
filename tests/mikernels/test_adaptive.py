"""`adaptive`: the products against the float64 definition, and both against known information."""

import math

import pytest
import torch

from mikernels import mutual_information, pairs_above, top_pairs
from mikernels.engine import choose_implementation
from mikernels.options import resolve
from mikernels.tables import ladder as adaptive
from mikernels.torch_impl import adaptive as implementation
from mikernels.transforms import transform_samples
from mikernels.triton_impl import adaptive as kernels
from mikernels.triton_impl import launch

from samples import GPU, correlated, gaussian, off_diagonal, smallest_budget


def estimate(x, y=None, **options):
    return mutual_information(x, y, estimator="adaptive", **options)


def strong(n_samples, seed=0):
    """`x [M, 1]` and `y [M, 5]` that share up to 7 nats, so that every number of cells is used."""
    x, z = gaussian(n_samples, 1, seed), gaussian(n_samples, 5, seed + 1)
    nats = torch.tensor([0.0, 0.3, 1.0, 2.5, 7.0])
    return x, (-torch.expm1(-2 * nats)).sqrt() * x + (-nats).exp() * z


def triton(x, y=None, **options):
    """On a GPU where there is one, elsewhere in Triton's interpreter."""
    device = {"device": "cuda"} if GPU else {}
    return estimate(x, y, impl="triton", calibrate=False, **device, **options).cpu()


@pytest.mark.parametrize("n_samples", [8, 9, 37, 1000])
def test_both_implementations_follow_the_reference(n_samples):
    x, y = strong(n_samples)
    expected = estimate(x, y, impl="reference", calibrate=False)
    torch.testing.assert_close(estimate(x, y, calibrate=False), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(triton(x, y), expected, rtol=0, atol=1e-5)


def test_reference_is_calibrated_alike():
    x, y = strong(500)
    torch.testing.assert_close(estimate(x, y), estimate(x, y, impl="reference"), rtol=0, atol=1e-4)


def test_two_inputs_ragged_tiles_and_strips(monkeypatch):
    x, y = correlated(100, 11).split([7, 4], dim=1)
    expected = estimate(x, y, impl="reference", calibrate=False)
    monkeypatch.setattr(implementation.Adaptive, "tile", 3)
    monkeypatch.setattr(implementation, "STRIP", 1)
    torch.testing.assert_close(estimate(x, y, calibrate=False), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(kernels.Adaptive, "tile", 3)
    torch.testing.assert_close(triton(x, y), expected, rtol=0, atol=1e-5)


def test_kernels_are_what_runs(monkeypatch):
    launched = []

    def recorded(original):
        def launch_it(self, kernel, *args, **keywords):
            launched.append(kernel.__name__)
            original(self, kernel, *args, **keywords)

        return launch_it

    for name in ("run", "run_tiles"):
        monkeypatch.setattr(launch.Launcher, name, recorded(getattr(launch.Launcher, name)))
    triton(gaussian(20, 3))
    assert launched == ["gather_kernel", "counts_kernel", "ladder_kernel"]
    estimate(gaussian(20, 3), impl="torch", calibrate=False)
    assert len(launched) == 3


def test_kernels_count_every_sample_once():
    x = correlated(300, 3)
    variables = transform_samples(x, "rank", seed=0)
    method = kernels.Adaptive(launch.Launcher("interpreter", "int8", autotune=False))
    if GPU:
        pytest.skip("looks at the operands, of the interpreter")
    panel = method.panel(variables, slice(0, 3))
    assert panel.features.shape == (3 * 64, launch.padded(300))
    assert torch.equal(panel.features.view(3, 64, -1).sum(1)[:, :300], torch.ones(3, 300, dtype=torch.int64))
    assert not panel.features[:, 300:].any()


@pytest.mark.skipif(GPU, reason="a GPU has one way to load")
def test_descriptors_load_what_pointers_load(monkeypatch):
    x = correlated(37, 5)
    expected = triton(x)
    monkeypatch.setattr(launch, "has_descriptors", lambda chip: True)
    assert torch.equal(triton(x), expected)


@pytest.mark.skipif(GPU, reason="a GPU has one way to smooth")
@pytest.mark.parametrize("columns", [16, 32])
def test_some_columns_at_a_time_give_the_same(columns, monkeypatch):
    x = torch.cat(strong(200), dim=1)
    expected = triton(x)
    monkeypatch.setitem(kernels.LADDER_COLUMNS, "interpreter", columns)
    torch.testing.assert_close(triton(x), expected, rtol=0, atol=1e-6)


def test_memory_that_held_nan_before_leaves_no_trace(monkeypatch):
    x = torch.cat(strong(40), dim=1)
    expected = triton(x)
    empty = torch.Tensor.new_empty

    def poisoned(self, *args, **keywords):
        tensor = empty(self, *args, **keywords)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    assert torch.equal(triton(x), expected)


def test_triton_is_symmetric_and_fits_the_smallest_budget(monkeypatch):
    x = torch.cat(strong(100), dim=1)
    expected = triton(x)
    assert torch.equal(expected, expected.t())
    monkeypatch.setattr(kernels.Adaptive, "tile", 4)
    budget = smallest_budget(x, estimator="adaptive", impl="triton", **({"device": "cuda"} if GPU else {}))
    torch.testing.assert_close(triton(x, memory_budget=budget), expected, rtol=0, atol=1e-6)


def test_a_gpu_gets_the_kernels():
    """Triton's interpreter stands in for any device, so that the choice can be seen without one."""
    options = resolve({"estimator": "adaptive"}, 64)
    assert choose_implementation(options, torch.device("cuda")) == ("triton", "int8")
    assert choose_implementation(options, torch.device("cpu")) == ("torch", "int8")


def test_refinement_in_one_batch_or_pair_by_pair():
    ranks = transform_samples(torch.cat(strong(2000), dim=1), "rank", seed=0).data
    places = implementation.finest_cells(ranks)
    coarse = torch.tensor([[0.0, 0.3, 1.0, 2.2, 3.2, 3.2]]).expand(6, 6).contiguous()
    whole, single = coarse.clone(), coarse.clone()
    finer = adaptive.CELLS[1:]
    implementation.refine(whole, places, places, finer, strip=2**24, upper=False)
    implementation.refine(single, places, places, finer, strip=1, upper=False)
    torch.testing.assert_close(whole, single, rtol=0, atol=1e-6)
    assert torch.equal(whole[:, :1], coarse[:, :1])
    assert (whole != coarse)[:, 1:].any(1).all()


@pytest.mark.parametrize("nats", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_gaussian_copula(nats):
    """Within four standard errors, `rho / sqrt(M)` for one pair, and 0.01 nats of bias."""
    rho = math.sqrt(-math.expm1(-2 * nats))
    x, z = gaussian(2000, 8, 3), gaussian(2000, 8, 4)
    mi = estimate(x, rho * x + math.exp(-nats) * z).diagonal()
    assert abs(mi.mean() - nats) < 0.01 + 4 * rho / math.sqrt(8 * 2000)


def test_rho_099_and_0999():
    for rho, tolerance in ((0.99, 0.03), (0.999, 0.1)):
        x, z = gaussian(2000, 8, 5), gaussian(2000, 8, 6)
        mi = estimate(x, rho * x + math.sqrt(1 - rho**2) * z).diagonal()
        assert abs(mi.mean() + 0.5 * math.log(1 - rho**2)) < tolerance


def test_independent_variables_have_none():
    mi = off_diagonal(estimate(gaussian(2000, 24)))
    assert abs(mi.mean()) < 1e-3
    assert mi.std() < 3e-3


def test_five_nats_are_more_than_four():
    x, z = gaussian(2000, 1), gaussian(2000, 1, 1)
    nats = torch.tensor([3.0, 4.0, 5.0])
    mi = estimate(x, (-torch.expm1(-2 * nats)).sqrt() * x + (-nats).exp() * z)[0]
    assert (mi - nats).abs().max() < 0.35
    assert mi.diff().min() > 0.6


@pytest.mark.parametrize("width", [0.2, 0.75])
def test_sharp_edges(width):
    """X uniform, Y = X + uniform noise: `w - log 2 w` up to w = 1/2, `1 / 4 w` beyond."""
    truth = width - math.log(2 * width) if width <= 0.5 else 1 / (4 * width)
    generator = torch.Generator().manual_seed(0)
    x, u = torch.rand(2, 4000, 4, generator=generator)
    mi = estimate(x, x + width * (2 * u - 1)).diagonal()
    assert abs(mi.mean() - truth) < 0.04


def test_monotone_maps_change_nothing():
    x = torch.cat(strong(500), dim=1).double()
    mapped = torch.cat([x[:, :3].exp(), x[:, 3:] ** 3], dim=1)
    assert (estimate(x) - estimate(mapped)).abs().max() <= 1e-6


def test_symmetric_and_repeatable():
    x = correlated(500, 6)
    mi = estimate(x)
    assert torch.equal(mi, mi.t())
    assert torch.equal(mi, estimate(x))


def test_does_not_depend_on_the_budget():
    x = correlated(500, 20)
    budget = smallest_budget(x, estimator="adaptive")
    torch.testing.assert_close(estimate(x, memory_budget=budget), estimate(x), rtol=0, atol=1e-6)


def test_mostly_zero_neurons_share_nothing_by_chance():
    x = torch.relu(gaussian(2000, 12) - 1.5)
    assert off_diagonal(estimate(x)).abs().max() < 0.01


def test_constant_columns_have_exactly_none():
    x = correlated(500, 4)
    x[:, 1] = 3.0
    mi = estimate(x)
    assert (mi[1] == 0).all()
    assert (mi[:, 1] == 0).all()


def test_pairs_of_highest_information():
    x, y = strong(500)
    best = top_pairs(x, 1, y, estimator="adaptive")
    assert (int(best.first), int(best.second)) == (0, 4)
    assert pairs_above(x, 1.7, y, estimator="adaptive").second.tolist() == [4, 3]


def test_cells_follow_the_ranks_and_nest():
    for n_samples in (8, 100, 5000):
        cells = adaptive.cell_of_rank(n_samples, 64)
        assert (cells.diff() >= 0).all()
        assert torch.equal(cells, (cells.flip(0) - 63).abs()) or n_samples == 5000
        assert torch.equal(adaptive.cell_of_rank(n_samples, 512) // 8, cells)


def test_psi_is_the_digamma_function():
    others = torch.arange(0, 50, dtype=torch.float64)  # f - 2
    error = (adaptive.psi(others + 2) - torch.special.digamma(others + 1)).abs()
    assert error[0] < 0.03
    assert error[1:].max() < 1e-3
    assert error[10:].max() < 1e-5


def test_ladder_of_independent_counts_is_near_zero():
    """Counts that are exactly the product of the margins have no information on any rung."""
    n_samples = 100_000
    for rung in adaptive.rungs(n_samples, 64)[:8:2]:
        margin = torch.bincount(adaptive.cell_of_rank(n_samples, 64)).double().view(rung.cells, -1).sum(1)
        counts = margin[:, None] * margin / n_samples
        value = (counts * adaptive.psi(rung.kernel @ counts @ rung.kernel)).sum() / n_samples - rung.margin
        assert abs(value) < 0.02


def test_takeover_is_continuous():
    coarse = torch.tensor([0.0, 0.45, 0.7, 0.95, 2.0])
    values = [coarse, coarse, *[torch.full((5,), 1.0)] * 3]
    expected = torch.tensor([0.0, 0.45, 0.85, 1.0, 1.0])
    torch.testing.assert_close(adaptive.refined(values, 100_000), expected)


def test_what_it_cannot_do():
    x = gaussian(64, 3)
    with pytest.raises(ValueError, match=r"bandwidth: 'adaptive' chooses its own, expected None, got 0\.3"):
        estimate(x, bandwidth=0.3)
    with pytest.raises(ValueError, match="transform: estimator='adaptive' expects 'rank', got 'standardize'"):
        estimate(x, transform="standardize")
    with pytest.raises(ValueError, match="precision: 'adaptive'"):
        estimate(x, precision="fp32")


def test_ranks_are_all_it_sees():
    x = correlated(500, 5)
    ranks = transform_samples(x, "rank", seed=0).data.t().double()
    assert torch.equal(estimate(x), estimate(ranks))
