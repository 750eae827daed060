"""Caches stay small, and one call empties all of them."""

from mikernels import caches, clear_caches, mutual_information

from samples import correlated


def sizes():
    return [cache.cache_info().currsize for cache in caches._caches]


def test_all_caches_are_bounded():
    assert all(0 < cache.cache_info().maxsize <= 32 for cache in caches._caches)


def test_tables_of_many_sizes_are_not_all_kept():
    clear_caches()
    for n_samples in range(20, 60):
        mutual_information(correlated(n_samples, 2))
    assert 0 < max(sizes()) <= 32


def test_all_caches_are_emptied():
    for estimator in ("grid", "adaptive", "kde"):
        mutual_information(correlated(50, 3), estimator=estimator)
    assert sum(sizes()) > 2
    clear_caches()
    assert sum(sizes()) == 0
