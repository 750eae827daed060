"""`adaptive`: both implementations against the float64 reference, and against known information."""

import math

import pytest
import torch

from mikernels import mutual_information, pairs_above, top_pairs
from mikernels.adaptive import refinement
from mikernels.adaptive.histograms import finest_cells, joint_counts
from mikernels.engine import choose_implementation
from mikernels.options import resolve
from mikernels.reference.adaptive import TAKEOVERS
from mikernels.tables.rungs import CELLS, cell_of_rank
from mikernels.torch_impl import adaptive_histograms
from mikernels.transforms import transform_samples
from mikernels.triton_impl import adaptive_kernels, launch

from samples import GPU, column_pairs, correlated, gaussian, off_diagonal, smallest_budget

ON_GPU = {"device": "cuda"} if GPU else {}


def estimate(x, y=None, **options):
    return mutual_information(x, y, estimator="adaptive", **options)


def uncalibrated(x, y=None, *, impl="torch", **options):
    """Kernels run on a GPU if there is one, and otherwise in Triton's interpreter."""
    device = ON_GPU if impl == "triton" else {}
    return estimate(x, y, impl=impl, calibrate=False, **device, **options).cpu()


def strong(n_samples, nats=(0.0, 0.3, 1.0, 2.5, 7.0), seed=0):
    """`x [M, 1]` and `y [M, 5]` that share up to 7 nats, so that every number of cells is used."""
    nats = torch.tensor(nats)
    x, z = gaussian(n_samples, 1, seed), gaussian(n_samples, len(nats), seed + 1)
    return x, (-torch.expm1(-2 * nats)).sqrt() * x + (-nats).exp() * z


implementations = pytest.mark.parametrize("impl", ["torch", "triton"])


@implementations
@pytest.mark.parametrize("n_samples", [8, 9, 37, 500])
def test_implementation_matches_the_reference(n_samples, impl):
    x, y = strong(n_samples)
    expected = uncalibrated(x, y, impl="reference")
    torch.testing.assert_close(uncalibrated(x, y, impl=impl), expected, rtol=0, atol=1e-5)


def test_tests_against_the_reference_reach_the_finest_cells():
    x, y = strong(500)
    limits = refinement.limits(500)
    assert float(uncalibrated(x, y).max()) > (1 - refinement.OVERLAP) * limits[-1]


def test_reference_gets_the_same_calibration():
    x, y = strong(20)
    expected = estimate(x, y, impl="reference")
    torch.testing.assert_close(estimate(x, y), expected, rtol=0, atol=1e-4)
    assert (expected - uncalibrated(x, y)).abs().max() > 0.1


@implementations
def test_ragged_tiles_and_strips_of_two_inputs_match_the_reference(impl, monkeypatch):
    x, y = correlated(60, 6).split([4, 2], dim=1)
    expected = uncalibrated(x, y, impl="reference")
    monkeypatch.setattr(adaptive_histograms.Adaptive, "tile", 3)
    monkeypatch.setattr(adaptive_histograms, "STRIP", 1)
    monkeypatch.setattr(adaptive_kernels.Adaptive, "tile", 3)
    torch.testing.assert_close(uncalibrated(x, y, impl=impl), expected, rtol=0, atol=1e-5)


def test_only_impl_triton_launches_the_kernels(monkeypatch):
    launched = []

    def recorded(original):
        def launch_it(self, kernel, *args, **keywords):
            launched.append(kernel.__name__)
            original(self, kernel, *args, **keywords)

        return launch_it

    for name in ("run", "run_tiles"):
        monkeypatch.setattr(launch.Launcher, name, recorded(getattr(launch.Launcher, name)))
    uncalibrated(gaussian(20, 2), impl="torch")
    assert launched == []
    uncalibrated(gaussian(20, 2), impl="triton")
    assert launched == ["gather_kernel", "counts_kernel", "ladder_kernel"]


@pytest.mark.skipif(GPU, reason="reads operands that the interpreter computed")
def test_one_hot_features_hold_every_sample_once():
    variables = transform_samples(correlated(300, 3), "rank", seed=0)
    method = adaptive_kernels.Adaptive(launch.Launcher("interpreter", "int8", autotune=False))
    features = method.panel(variables, slice(0, 3)).features.view(3, 64, launch.padded(300))
    assert torch.equal(features.sum(1)[:, :300], torch.ones(3, 300, dtype=torch.int64))
    assert not features[:, :, 300:].any()
    cells = cell_of_rank(300, 64)[variables.data.long()]
    assert torch.equal(features[:, :, :300].int().argmax(1), cells)


@pytest.mark.skipif(GPU, reason="a GPU loads in one way only")
def test_tensor_descriptors_load_the_same_as_pointers(monkeypatch):
    x = correlated(37, 3)
    expected = uncalibrated(x, impl="triton")
    monkeypatch.setattr(launch, "has_descriptors", lambda chip: True)
    assert torch.equal(uncalibrated(x, impl="triton"), expected)


@pytest.mark.skipif(GPU, reason="a GPU smooths in one way only")
@pytest.mark.parametrize("columns", [16, 32])
def test_smoothing_a_few_columns_at_a_time_changes_nothing(columns, monkeypatch):
    x, y = strong(100, nats=(0.3, 7.0))
    expected = uncalibrated(x, y, impl="triton")
    monkeypatch.setitem(adaptive_kernels.LADDER_COLUMNS, "interpreter", columns)
    torch.testing.assert_close(uncalibrated(x, y, impl="triton"), expected, rtol=0, atol=1e-6)


def test_kernels_overwrite_all_memory_that_they_return(monkeypatch):
    x = torch.cat(strong(40, nats=(0.0, 7.0)), dim=1)
    expected = uncalibrated(x, impl="triton")
    empty = torch.Tensor.new_empty

    def poisoned(self, *args, **keywords):
        tensor = empty(self, *args, **keywords)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 99)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    assert torch.equal(uncalibrated(x, impl="triton"), expected)


@implementations
def test_matrix_is_symmetric_and_the_same_in_the_smallest_budget(impl, monkeypatch):
    x = torch.cat(strong(60, nats=(0.3, 7.0)), dim=1)
    expected = uncalibrated(x, impl=impl)
    assert torch.equal(expected, expected.t())
    monkeypatch.setattr(adaptive_kernels.Adaptive, "tile", 2)
    device = ON_GPU if impl == "triton" else {}
    budget = smallest_budget(x, estimator="adaptive", impl=impl, **device)
    torch.testing.assert_close(uncalibrated(x, impl=impl, memory_budget=budget), expected, rtol=0, atol=1e-6)


def test_auto_chooses_the_kernels_on_a_gpu():
    """Without a GPU, Triton's interpreter accepts any device, so the choice can be tested."""
    options = resolve({"estimator": "adaptive"}, 64)
    assert choose_implementation(options, torch.device("cuda")) == ("triton", "int8")
    assert choose_implementation(options, torch.device("cpu")) == ("torch", "int8")


def test_refining_pairs_together_or_one_by_one_gives_the_same():
    cells = finest_cells(transform_samples(torch.cat(strong(2000), dim=1), "rank", seed=0))
    coarse = torch.tensor([[0.0, 0.3, 1.0, 2.2, 3.2, 3.2]]).expand(6, 6).contiguous()
    together, one_by_one = coarse.clone(), coarse.clone()
    refinement.refine(together, cells, cells, CELLS[1:], strip=2**24, upper=False)
    refinement.refine(one_by_one, cells, cells, CELLS[1:], strip=1, upper=False)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-6)
    assert torch.equal(together[:, :1], coarse[:, :1])
    assert (together != coarse)[:, 1:].any(1).all()


@pytest.mark.parametrize("nats", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_gaussian_pairs_get_their_true_information(nats):
    """Within four standard errors, `rho / sqrt(M)` for one pair, and 0.01 nats of bias."""
    rho = math.sqrt(-math.expm1(-2 * nats))
    x, z = gaussian(2000, 8, 3), gaussian(2000, 8, 4)
    mi = column_pairs(x, rho * x + math.exp(-nats) * z, estimator="adaptive")
    assert abs(mi.mean() - nats) < 0.01 + 4 * rho / math.sqrt(8 * 2000)


@pytest.mark.parametrize(("rho", "tolerance"), [(0.99, 0.03), (0.999, 0.1)])
def test_nearly_equal_gaussian_pairs_get_their_true_information(rho, tolerance):
    x, z = gaussian(2000, 8, 5), gaussian(2000, 8, 6)
    mi = column_pairs(x, rho * x + math.sqrt(1 - rho**2) * z, estimator="adaptive")
    assert abs(mi.mean() + 0.5 * math.log(1 - rho**2)) < tolerance


def test_independent_variables_share_no_information():
    mi = off_diagonal(estimate(gaussian(2000, 24)))
    assert abs(mi.mean()) < 1e-3
    assert mi.std() < 3e-3


def test_estimate_does_not_saturate_before_five_nats():
    nats = torch.tensor([3.0, 4.0, 5.0])
    mi = estimate(*strong(2000, nats=(3.0, 4.0, 5.0)))[0]
    assert (mi - nats).abs().max() < 0.35
    assert mi.diff().min() > 0.6


@pytest.mark.parametrize("width", [0.2, 0.75])
def test_pairs_with_sharp_edges_get_their_true_information(width):
    """X uniform, Y = X + uniform noise: `w - log 2 w` nats up to w = 1/2, `1 / 4 w` beyond."""
    truth = width - math.log(2 * width) if width <= 0.5 else 1 / (4 * width)
    x, u = torch.rand(2, 2000, 8, generator=torch.Generator().manual_seed(0))
    mi = column_pairs(x, x + width * (2 * u - 1), estimator="adaptive")
    assert abs(mi.mean() - truth) < 0.04


def test_monotone_maps_change_nothing():
    x = torch.cat(strong(500), dim=1).double()
    mapped = torch.cat([x[:, :3].exp(), x[:, 3:] ** 3], dim=1)
    assert torch.equal(uncalibrated(x), uncalibrated(mapped))


def test_estimate_depends_on_ranks_alone():
    x = correlated(500, 5)
    ranks = transform_samples(x, "rank", seed=0).data.t().double()
    assert torch.equal(uncalibrated(x), uncalibrated(ranks))


def test_repeated_calls_give_the_same_bits():
    x = correlated(500, 6)
    assert torch.equal(uncalibrated(x), uncalibrated(x))


def test_mostly_zero_neurons_share_nothing_by_chance():
    x = torch.relu(gaussian(2000, 12) - 1.5)
    assert off_diagonal(estimate(x)).abs().max() < 0.01


def test_constant_columns_share_exactly_nothing():
    x = correlated(20, 4)
    x[:, 1] = 3.0
    mi = estimate(x)
    assert (mi[1] == 0).all()
    assert (mi[:, 1] == 0).all()


def test_pair_lists_are_in_order_of_information():
    x, y = strong(500)
    options = {"estimator": "adaptive", "calibrate": False}
    best = top_pairs(x, 1, y, **options)
    assert (int(best.first), int(best.second)) == (0, 4)
    assert pairs_above(x, 1.7, y, **options).second.tolist() == [4, 3]


@pytest.mark.parametrize("n_samples", [8, 100, 5000])
def test_cells_follow_the_ranks_and_nest(n_samples):
    cells = cell_of_rank(n_samples, 64)
    assert (cells.diff() >= 0).all()
    assert torch.equal(cell_of_rank(n_samples, 512) // 8, cells)
    mirrored = 63 - cells.flip(0)
    assert (cells - mirrored).abs().max() <= (n_samples == 5000)  # rounding at the border of a cell


def test_takeover_is_gradual():
    value = torch.tensor([0.0, 0.65, 0.72, 1.0, 1.21, 1.35, 3.0])
    expected = torch.tensor([0.0, 0.0, 0.1, 0.5, 0.8, 1.0, 1.0])
    torch.testing.assert_close(refinement.takeover(value, 1.0), expected)


def test_limits_of_many_samples_are_those_of_the_reference():
    """The reference is too slow to compare estimates at the number of samples where these limits apply."""
    assert dict(zip(CELLS[1:], refinement.limits(100_000), strict=True)) == TAKEOVERS


def test_finer_cells_take_over_later_if_there_are_few_samples():
    assert all(few > many for few, many in zip(refinement.limits(100), refinement.LIMITS, strict=True))


def test_settings_that_adaptive_does_not_have_are_errors():
    x = gaussian(64, 3)
    with pytest.raises(ValueError, match=r"bandwidth: expected None with estimator='adaptive', .* got 0\.3"):
        estimate(x, bandwidth=0.3)
    with pytest.raises(
        ValueError, match="transform: expected 'rank' with estimator='adaptive', got 'standardize'"
    ):
        estimate(x, transform="standardize")
    with pytest.raises(ValueError, match="precision: expected one of 'int8' for 'adaptive'"):
        estimate(x, precision="fp32")


def test_more_samples_than_float32_counts_may_be_in_one_cell():
    count = 2**24 + 1000
    assert int(joint_counts(torch.zeros(1, count, dtype=torch.int64), 2)[0, 0, 0]) == count
