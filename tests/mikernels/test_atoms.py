"""Values that many samples share: a cell of their own, over which nothing is smoothed."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from mikernels import GridStream, mutual_information, top_pairs
from mikernels.atoms import least_atom
from mikernels.tables.node_shares import reserved_nodes
from mikernels.transforms import transform_samples

from samples import GPU, correlated, gaussian, off_diagonal

ESTIMATORS = ["grid", "kde", "renyi2", "adaptive"]


def discrete(n_samples, levels, seed=0):
    """Integer columns with as many levels as named, that share some information: `[M, N]`."""
    x = correlated(n_samples, len(levels), seed)
    return torch.stack(
        [(torch.special.ndtr(c) * k).floor().clamp(max=k - 1) for c, k in zip(x.T, levels, strict=True)],
        dim=1,
    )


def table_of_counts(x, y):
    counts = np.zeros((int(x.max()) + 1, int(y.max()) + 1))
    np.add.at(counts, (x.numpy().astype(int), y.numpy().astype(int)), 1)
    return counts


def plug_in(counts):
    """Mutual information of a table of counts, nats."""
    joint = counts / counts.sum()
    product = joint.sum(1, keepdims=True) * joint.sum(0)
    return float((joint * np.log(joint / product, where=joint > 0, out=np.zeros_like(joint))).sum())


def expected_codes(values, most):
    """Cells and ranks of one column, sample by sample."""
    distinct, counts = np.unique(values, return_counts=True)
    least = least_atom(len(values))
    beside = [
        max([*counts[max(0, i - 1) : i], *counts[i + 1 : i + 2]], default=0) for i in range(len(counts))
    ]
    by_count = sorted(
        (-n, v, n >= 3 * b) for v, n, b in zip(distinct, counts, beside, strict=True) if n >= least
    )
    atoms = [v for _, v, _ in by_count]
    few = 0 < sum(v not in atoms for v in values) < least
    whole = sum(v not in atoms for v in values) < least and len(atoms) + few <= most
    if not whole:
        atoms = [v for _, v, stands_out in by_count if stands_out][: most // 2]
    rest = [v for v in values if v not in atoms]
    order = {v: i for i, v in enumerate(sorted(rest))}  # without ties
    codes = []
    for v in values:
        if v in atoms:
            codes.append(-1 - atoms.index(v))
        elif whole:
            codes.append(-1 - len(atoms))
        else:
            codes.append(math.floor((order[v] + 0.5) * len(values) / len(rest)))
    return codes


@pytest.mark.parametrize("most", [2, 5, 16, 100])
@pytest.mark.parametrize("n_samples", [30, 400, 601])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_atoms_are_the_frequent_values(n_samples, most, dtype):
    """Columns in which every value is frequent or alone, since the order of other equal values is random."""
    rank = gaussian(n_samples, 8).argsort(0).argsort(0).double()
    least, third = least_atom(n_samples), n_samples // 3
    x = rank - third  # exact in half precision
    x[:, 1] = x[:, 1].relu()
    if most >= 4:
        x[:, 2] = x[:, 2].clamp(least - third, n_samples - third - least - 2)
        x[:, 5] = torch.where(rank[:, 5] < 2 * least, 2.0 * (rank[:, 5] < least), x[:, 5] + 2 * n_samples)
        x[rank[:, 5] == 2 * least, 5] = 1.0  # alone between two frequent values
    x[:, 3] = (x[:, 3] > 0).double()
    x[:, 4] = torch.where(rank[:, 4] < least - 1, -rank[:, 4], 1.0)  # the others are too few to smooth
    if most >= n_samples // least:
        x[:, 6] = (rank[:, 6] / n_samples * (n_samples // (least + 1))).floor()
    x[:, 7] = torch.where(rank[:, 7] < n_samples // 2, 0.0, -0.0)
    codes = transform_samples(x.to(dtype), "rank", seed=0, most_atoms=most).data
    for column, code in zip(x.to(dtype).double().T, codes, strict=True):
        assert code.tolist() == expected_codes((column + 0.0).tolist(), most)


def test_columns_without_atoms_keep_their_ranks():
    x = correlated(3000, 5)
    for values in (x, x.double(), x.bfloat16()):
        ranked = transform_samples(values, "rank", seed=1)
        variables = transform_samples(values, "rank", seed=1, most_atoms=16)
        assert variables.atoms is None
        assert torch.equal(variables.data, ranked.data)


def test_rounded_values_are_no_atoms():
    """Each repeats as often as its neighbors. The zero of a ReLU stands out among them."""
    x = correlated(4096, 4)
    for rounded in (x.to(torch.float8_e4m3fn).float(), (4 * x).round(), x.bfloat16()):
        assert transform_samples(rounded, "rank", seed=1, most_atoms=16).atoms is None
        atoms = transform_samples(rounded.relu(), "rank", seed=1, most_atoms=16).atoms
        assert atoms.number.tolist() == [1, 1, 1, 1]


def test_rounded_values_are_ranked_like_others():
    x, y = correlated(2048, 24), gaussian(2048, 24, 5)
    x = 0.5 * x + y
    fine = off_diagonal(mutual_information(x))
    rounded = off_diagonal(mutual_information(x.to(torch.float8_e4m3fn)))
    assert (
        torch.corrcoef(torch.stack([fine.argsort().argsort(), rounded.argsort().argsort()]).double())[0, 1]
        > 0.95
    )


@pytest.mark.parametrize("nodes", [2, 3, 7, 16, 256])
def test_nodes_are_reserved_up_to_a_half(nodes):
    reserved = reserved_nodes(nodes)
    assert reserved[0] == 0
    assert reserved[-1] == nodes // 2
    assert all(a < b for a, b in pairwise(reserved))


@pytest.mark.parametrize("impl", ["torch", "reference", "triton"])
@pytest.mark.parametrize("estimator", ["grid", "kde"])
def test_discrete_columns_are_exact_tables(estimator, impl):
    x = discrete(600, [2, 3, 5, 12, 16])
    x[:3, 1] = 3.0  # a rare value, too
    device = {"device": "cuda"} if GPU and impl == "triton" else {}
    n = 600 if impl != "triton" or estimator == "grid" else 100
    mi = mutual_information(x[:n], estimator=estimator, impl=impl, **device).cpu()
    columns = x[:n].T if n == 600 else x[:n, :3].T
    for i, a in enumerate(columns):
        for j, b in enumerate(columns):
            assert float(mi[i, j]) == pytest.approx(
                plug_in(table_of_counts(a, b)), abs=2e-5 if impl != "triton" else 5e-4
            )


def test_adaptive_of_discrete_columns_is_the_estimate_of_grassberger():
    x = discrete(500, [2, 4, 7])
    mi = mutual_information(x, estimator="adaptive")
    for i in range(3):
        for j in range(3):
            counts = table_of_counts(x[:, i], x[:, j])

            def mean(n):
                n = torch.from_numpy(n[n > 0])
                return float((n * n.digamma()).sum()) / 500

            expected = mean(counts) - mean(counts.sum(0)) - mean(counts.sum(1)) + math.log(499.5)
            # psi(x + 1) has an error of 0.001 at x = 1, and log(M - 1) stands for psi(M)
            assert float(mi[i, j]) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_is_smoothed_across_the_edge_of_an_atom(estimator):
    """An indicator is a function of where the zeros are: it shares its whole entropy with the neuron."""
    x = gaussian(512, 1)
    neuron = torch.relu(x - 0.2533)
    share = float((neuron > 0).double().mean())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    if estimator == "renyi2":
        entropy = -math.log(share**2 + (1 - share) ** 2)
    both = mutual_information(neuron, (x > 0.2533).float(), estimator=estimator, calibrate=False)
    tolerance = {"grid": 1e-4, "kde": 0.03, "renyi2": 2.0, "adaptive": 0.01}[estimator]
    if estimator != "renyi2":
        assert float(both) == pytest.approx(entropy, abs=tolerance)
    assert float(
        mutual_information(neuron + 5, (x > 0.2533).float(), estimator=estimator, calibrate=False)
    ) == float(both)


@pytest.mark.parametrize(("estimator", "tolerance"), [("grid", 0.04), ("kde", 0.08), ("adaptive", 0.03)])
def test_neurons_that_share_nothing_but_their_zeros(estimator, tolerance):
    """log 2 for a common mask of half of the samples; the values are independent."""
    mask = (gaussian(4000, 1, 5) > 0).float()
    if estimator == "kde":
        mask = mask[:1000]
    x, y = (gaussian(len(mask), 1, seed).exp() * mask for seed in (1, 2))
    assert float(mutual_information(x, y, estimator=estimator)) == pytest.approx(math.log(2), abs=tolerance)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_copy_shares_what_the_diagonal_shows(estimator):
    x = torch.cat([torch.relu(correlated(400, 2)), discrete(400, [3])], dim=1)
    mi = mutual_information(torch.cat([x, x], dim=1), estimator=estimator)
    torch.testing.assert_close(mi[:3, 3:].diagonal(), mi.diagonal()[:3], rtol=0, atol=1e-5)
    other = mutual_information(x, x, estimator=estimator, seed=5)  # two inputs have other orders of ties
    torch.testing.assert_close(other.diagonal(), mi.diagonal()[:3], rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [40, 300])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_atoms_are_close_to_the_reference(estimator, n_samples):
    x = torch.cat(
        [correlated(n_samples, 3), torch.relu(correlated(n_samples, 3)), discrete(n_samples, [2, 4])], dim=1
    )
    x[:, 5] = x[:, 5].clamp(max=0.5)
    options = {"estimator": estimator, "calibrate": False}
    mi = mutual_information(x, **options)
    expected = mutual_information(x, impl="reference", **options)
    atol = 0.03 / n_samples**0.5 if estimator == "grid" else 1e-5
    torch.testing.assert_close(mi, expected, rtol=0, atol=atol)
    if estimator == "grid":
        exact = mutual_information(x, precision="fp32", **options)
        torch.testing.assert_close(exact, expected, rtol=0, atol=1e-5)
    # One input without atoms.
    cross = mutual_information(x[:, :3], x[:, 3:], **options)
    torch.testing.assert_close(cross, expected[:3, 3:], rtol=0, atol=atol)
    best = top_pairs(x, 3, **options)
    torch.testing.assert_close(best.mi, mi[best.first, best.second])


@pytest.mark.parametrize("precision", ["int8", "fp16", "fp8", "fp32"])
def test_kernels_of_grid_know_atoms_as_rows_of_the_table(precision):
    x = torch.cat([correlated(130, 2), torch.relu(correlated(130, 2)), discrete(130, [3])], dim=1)
    options = {"impl": "triton", "precision": precision, **({"device": "cuda"} if GPU else {})}
    expected = mutual_information(x, impl="reference")
    atol = {"int8": 0.03, "fp16": 6e-4, "fp8": 0.05, "fp32": 1e-4}[precision] / 130**0.5
    torch.testing.assert_close(mutual_information(x, **options).cpu(), expected, rtol=0, atol=atol)
    cross = mutual_information(x[:, :2], x[:, 2:], **options).cpu()
    torch.testing.assert_close(cross, expected[:2, 2:], rtol=0, atol=atol)


@pytest.mark.parametrize("estimator", ["adaptive", "kde", "renyi2"])
def test_other_kernels_on_atoms(estimator):
    x = torch.cat([correlated(40, 2), torch.relu(correlated(40, 2)), torch.relu(correlated(40, 1))], dim=1)
    options = {"estimator": estimator, "calibrate": False}
    device = {"device": "cuda"} if GPU else {}
    mi = mutual_information(x, impl="triton", **options, **device).cpu()
    expected = mutual_information(x, impl="reference", **options)
    atol = 1e-5 if estimator == "adaptive" else 1e-4
    torch.testing.assert_close(mi, expected, rtol=0, atol=atol)


def test_a_stream_has_the_atoms_of_its_reference():
    x = torch.cat([torch.relu(correlated(500, 3)), discrete(500, [4]), correlated(500, 1)], dim=1).double()
    stream = GridStream(x)
    for batch in x.split(77):
        stream.update(batch)
    torch.testing.assert_close(stream.mutual_information(), mutual_information(x), rtol=0, atol=1e-6)
    # A value just beside an atom is not in it.
    beside, at = GridStream(x), GridStream(x)
    beside.update(torch.where(x == 0, -1e-9, x))
    at.update(x)
    assert not torch.equal(beside.mutual_information(), at.mutual_information())


@pytest.mark.parametrize("estimator", ["grid", "kde"])
def test_calibration_takes_from_tables_what_chance_adds_to_them(estimator):
    """(a - 1) (b - 1) / 2M nats to a table of a by b cells."""
    x = torch.cat([discrete(400, [3, 5]), correlated(400, 2)], dim=1)
    raw, mapped = (mutual_information(x, estimator=estimator, calibrate=c) for c in (False, True))
    assert float((raw - mapped)[0, 1]) == pytest.approx(2 * 4 / 800, abs=1e-6)
    continuous = mutual_information(x[:, 2:], estimator=estimator, calibrate=True)
    assert torch.equal(mapped[2:, 2:], continuous)


@pytest.mark.parametrize("estimator", ["grid", "adaptive"])
def test_calibrated_independent_variables_share_nothing(estimator):
    """Of any kind: of 2 or 9 values, half or mostly zero, rounded, continuous."""
    m, n = 1000, 48
    x = gaussian(m, n).view(m, n // 6, 6).unbind(2)
    kinds = [
        (x[0] > 1).float(),
        (2 * x[1]).round().clamp(-4, 4),
        x[2].relu(),
        (x[3] - 1).relu(),
        x[4].round(),
        x[5],
    ]
    x = torch.stack(kinds, dim=2).view(m, n)
    raw, mi = (mutual_information(x, estimator=estimator, calibrate=c) for c in (False, True))
    other = ~torch.eye(n // 6, dtype=torch.bool)
    for a in range(6):
        for b in range(6):
            assert abs(float(mi[a::6, b::6][other].mean())) < 0.006, (a, b)
    if estimator == "grid":
        assert raw[1::6, 1::6][other].mean() > 0.03


def test_half_zero_copies_are_ranked_above_all_other_pairs():
    x = torch.relu(correlated(2000, 12))
    mi = mutual_information(torch.cat([x, x[:, :1]], dim=1)).fill_diagonal_(0)
    assert divmod(int(mi.argmax()), 13) == (0, 12)


def test_bandwidth_of_the_samples_sees_no_density_in_atoms():
    x = torch.cat([torch.relu(correlated(300, 4)), discrete(300, [3])], dim=1)
    mi = mutual_information(x, estimator="kde", bandwidth="loo")
    assert torch.isfinite(mi).all()
    assert off_diagonal(mi).min() > -0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_looking_for_atoms_everywhere_changes_nothing(estimator, monkeypatch):
    """As on a GPU, where a look would wait for the device."""
    x = torch.cat([correlated(200, 3), torch.relu(correlated(200, 2))], dim=1)
    expected = [mutual_information(v, estimator=estimator) for v in (x, x[:, :3])]
    monkeypatch.setattr("mikernels.transforms.may_repeat", lambda values, order, most: True)
    for v, mi in zip((x, x[:, :3]), expected, strict=True):
        torch.testing.assert_close(mutual_information(v, estimator=estimator), mi, rtol=0, atol=2e-6)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("estimator", ["grid", "adaptive"])
def test_columns_beside_atoms_keep_their_bits(estimator, impl):
    x, options = (
        correlated(130, 3),
        {"estimator": estimator, "impl": impl, **({"device": "cuda"} if GPU else {})},
    )
    beside = torch.cat([x, torch.relu(x[:, :1])], dim=1)
    assert torch.equal(mutual_information(beside, **options)[:3, :3], mutual_information(x, **options))


@pytest.mark.parametrize("estimator", ["grid", "kde", "adaptive"])
def test_labels_are_names_without_an_order(estimator):
    """y of integers, one dimension: 3 classes of normals around -2, 0 and 2, whose order says nothing."""
    label = torch.arange(600) % 3
    x = gaussian(600, 2) + torch.stack([torch.tensor([-2.0, 0.0, 2.0])[label], torch.zeros(600)], dim=1)
    mi = mutual_information(x, label, estimator=estimator)
    renamed = mutual_information(x, torch.tensor([7, 1, 4])[label], estimator=estimator)
    torch.testing.assert_close(renamed, mi, rtol=0, atol=1e-5)
    assert mi.shape == (2, 1)
    if estimator == "adaptive":
        # The entropy of the mixture less that of a normal, by quadrature; nothing for the second.
        y = torch.linspace(-10, 10, 4001, dtype=torch.float64)
        density = torch.exp(-0.5 * (y[:, None] - torch.tensor([-2.0, 0.0, 2.0])).square()).mean(
            1
        ) / math.sqrt(2 * math.pi)
        truth = -float((density * density.log()).sum() * (y[1] - y[0])) - 0.5 * math.log(2 * math.pi * math.e)
        assert mi.flatten().tolist() == pytest.approx([truth, 0.0], abs=0.06)
