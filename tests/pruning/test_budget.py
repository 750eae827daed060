import itertools

import pytest
import torch

from pruning import Settings, prune
from pruning.choose.budget import allocate, rounding, uniform_width
from pruning.choose.target import kept_widths
from pruning.model.ffn import find_ffns
from pruning.prepare import warn_of_few_tokens

from tiny import tiny_model


def curves(n_layers, width, seed):
    """Random convex damage curves."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(n_layers, width, dtype=torch.float64, generator=generator).sort(dim=1).values
    return list(torch.cat([torch.zeros(n_layers, 1, dtype=torch.float64), steps.cumsum(1)], dim=1))


def predicted(damage, sensitivity, widths):
    width = len(damage[0]) - 1
    return sum(
        s * float(curve[width - w] / curve[width // 2])
        for s, curve, w in zip(sensitivity, damage, widths, strict=True)
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_other_widths_of_the_same_total_have_a_lower_predicted_damage(seed):
    damage, sensitivity = curves(3, 12, seed), [0.3, 1.0, 2.0]
    widths = allocate(damage, sensitivity, width=12, ratio=0.5, multiple_of=2, max_layer_ratio=0.9)
    best = min(
        predicted(damage, sensitivity, other)
        for other in itertools.product(range(2, 13, 2), repeat=3)
        if sum(other) == sum(widths)
    )
    assert predicted(damage, sensitivity, widths) == pytest.approx(best)


@pytest.mark.parametrize(("width", "multiple", "ratio"), [(48, 8, 0.4), (50, 8, 0.3), (33, 1, 0.2)])
def test_budgets_keep_as_many_neurons_as_the_uniform_budget_in_multiples(width, multiple, ratio):
    widths = allocate(
        curves(4, width, 0),
        [1.0, 2.0, 3.0, 4.0],
        width=width,
        ratio=ratio,
        multiple_of=multiple,
        max_layer_ratio=0.8,
    )
    assert abs(sum(widths) - 4 * uniform_width(width, ratio, multiple)) <= 4 * (width % multiple)
    assert all(w == width or w % multiple == 0 for w in widths)
    assert min(widths) >= 0.2 * width


def test_equal_layers_get_equal_widths():
    damage = curves(1, 32, 0) * 3
    widths = allocate(damage, [1.0, 1.0, 1.0], width=32, ratio=0.25, multiple_of=4, max_layer_ratio=0.8)
    assert widths == [24, 24, 24]


def test_a_cap_that_makes_the_ratio_unreachable_is_an_error():
    with pytest.raises(
        ValueError, match=r"lets a layer of 32 lose the 24 neurons .* got 12 for max_layer_ratio=0\.4"
    ):
        allocate(curves(2, 32, 0), [1.0, 1.0], width=32, ratio=0.75, multiple_of=4, max_layer_ratio=0.4)


@pytest.mark.parametrize(
    ("width", "ratio", "expected"),
    [
        (8192, 0.2, 256),  # 6553.6 -> 6656, a ratio of 0.1875
        (1536, 0.5, 256),
        (1536, 0.2, 32),  # 1228.8 -> 1280 would be a ratio of 0.167
        (5120, 0.22, 32),  # 3993.6 -> 4096 would be a ratio of exactly 0.2
        (11008, 0.5, 256),
        (4864, 0.01, 32),  # would keep all
        (8192, 0.99, 32),  # would keep none
        (6912 + 32, 0.2, 32),  # the dense width is no multiple
    ],
)
def test_the_default_rounding_suits_k_quants_where_it_hardly_moves_the_ratio(width, ratio, expected):
    assert rounding(width, ratio, None) == expected
    kept = uniform_width(width, ratio, None)
    assert kept % expected == 0
    assert abs(1 - kept / width - ratio) < 0.02


def test_a_given_multiple_is_taken_as_it_is():
    assert [rounding(8192, 0.2, multiple) for multiple in (1, 32, 128, 512)] == [1, 32, 128, 512]


def test_uneven_widths_are_multiples_of_32_by_default(windows, monkeypatch):
    """Coarser steps would make a worse budget."""
    seen = []

    def spy(damage, sensitivity, **options):
        seen.append(options["multiple_of"])
        return [256, 224, 288]

    monkeypatch.setattr("pruning.choose.selection.allocate", spy)
    model = tiny_model("Llama", width=512)
    prune(model, None, calibration=windows, ratio=0.5, budget="mi", repair="none", sample_size=64)
    assert seen == [32]


def test_what_is_said_of_uneven_widths_counts_multiples_of_32_by_default():
    ffns = find_ffns(tiny_model("Llama", width=1024))
    for budget, kept in (("uniform", 768), ("mi", 800), ("kl", 800)):
        settings = Settings(ratio=0.233, budget=budget, repair="lstsq")
        assert kept_widths(ffns, settings.ratio, settings) == [kept] * len(ffns)
        with pytest.warns(UserWarning, match=f"of the {kept} kept neurons"):
            warn_of_few_tokens(64, ffns, settings)


def test_small_widths_that_32_cannot_round_are_an_error():
    with pytest.raises(ValueError, match=r"got 32 for ratio=0\.2 rounded to a multiple of 32"):
        uniform_width(32, 0.2, None)
