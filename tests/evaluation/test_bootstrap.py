import numpy as np
import pytest

from defectdiffu.errors import InputError
from defectdiffu.evaluation.statistics import bootstrap, paired_bootstrap


def test_interval_covers_the_known_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    results = [bootstrap(rng.normal(3, 1, 40), seed=i) for i in range(60)]
    covered = np.mean([r["low"] <= 3 <= r["high"] for r in results])
    assert covered >= 0.85
    assert np.mean([r["high"] - r["low"] for r in results]) == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.1)


def test_one_value_repeated_has_no_width():
    assert bootstrap([2.0, 2.0, 2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "count": 3}


def test_same_seed_same_interval():
    assert bootstrap([1, 2, 5, 9], seed=3) == bootstrap([1, 2, 5, 9], seed=3)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 10, 30)
    result = paired_bootstrap(shared + 1 + rng.normal(0, 0.1, 30), shared)
    assert 0.9 < result["low"] < 1 < result["high"] < 1.1


@pytest.mark.parametrize(("values", "said"), [([], "at least 1"), ([1.0, float("nan")], "1 of 2 values")])
def test_bad_values_are_named(values, said):
    with pytest.raises(InputError, match=said):
        bootstrap(values)


def test_pairs_must_match():
    with pytest.raises(InputError, match="2 values against 3"):
        paired_bootstrap([1, 2], [1, 2, 3])
