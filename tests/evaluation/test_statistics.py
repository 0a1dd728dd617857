"""Against closed forms by hand, and against scipy's own tests."""

import math

import numpy as np
import pytest
from scipy import stats

from rtdmd_lightning.evaluation.statistics import decimals, estimate, paired_difference, per_prompt, per_tag


def test_mean_and_standard_error_by_hand():
    """1, 2, 3, 4: unbiased variance 5/3, so the error is sqrt(5/12)."""
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.error == pytest.approx(math.sqrt(5 / 12), rel=1e-12)


def test_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, error 1/sqrt(3), Student's quantile for two degrees of freedom 0.95·sqrt(2/(1-0.95²))."""
    found = paired_difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half), rel=1e-9)


@pytest.mark.parametrize("count", [2, 7, 300])
def test_paired_interval_is_that_of_the_paired_t_test(count):
    rng = np.random.default_rng(count)
    baseline = rng.normal(size=count)
    scores = baseline + rng.normal(0.2, 0.3, size=count)
    found = paired_difference(scores.tolist(), baseline.tolist())
    expected = stats.ttest_rel(scores, baseline).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        baseline = rng.normal(size=12)
        found = paired_difference((baseline + rng.normal(0.5, 1.0, size=12)).tolist(), baseline.tolist())
        covered += found.low <= 0.5 <= found.high
    assert 0.93 < covered / 1000 < 0.97


def test_pairing_takes_out_what_both_share():
    baseline = [0.0, 10.0, 20.0, 30.0]
    found = paired_difference([1.0, 11.1, 20.9, 31.0], baseline)
    assert 0.8 < found.low < 1.0 < found.high < 1.2


def test_equal_scores_differ_by_exactly_nothing():
    found = paired_difference([0.3, 0.7], [0.3, 0.7])
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_one_image_has_a_mean_and_no_error():
    assert estimate([2.0]).mean == 2 and estimate([2.0]).error is None
    found = paired_difference([3.0], [1.0])
    assert found.mean == 2 and math.isnan(found.low) and math.isnan(found.high)


def test_the_images_of_a_prompt_are_averaged_first():
    """Prompt by prompt, three times over: 1, 2, 3 of the first prompt and 0, 4, 8 of the second."""
    assert per_prompt([1.0, 0.0, 2.0, 4.0, 3.0, 8.0], prompts=2) == [2.0, 4.0]
    assert per_prompt([0.1, 0.2, 0.3], prompts=3) == [0.1, 0.2, 0.3]


def test_the_error_over_prompts_covers_the_truth_and_that_over_images_would_not():
    """Prompts differ more than the images of one do: an error from the images alone would be far too small."""
    rng = np.random.default_rng(0)
    covered, covered_by_images = 0, 0
    for _ in range(500):
        scores = (rng.normal(size=30) + 0.3 * rng.normal(size=(5, 30))).reshape(-1).tolist()
        found, naive = estimate(per_prompt(scores, prompts=30)), estimate(scores)
        covered += abs(found.mean) < 1.96 * found.error
        covered_by_images += abs(naive.mean) < 1.96 * naive.error
    assert covered / 500 > 0.91 and covered_by_images / 500 < 0.7


def test_overall_is_the_mean_over_tags_not_over_images():
    found = per_tag([1.0, 0.0, 0.0, 0.0, 1.0], ["b", "a", "a", "a", "b"])
    assert found == {"b": 1.0, "a": 0.0, "overall": 0.5}
    assert list(found) == ["b", "a", "overall"]


@pytest.mark.parametrize(
    ("errors", "wanted"),
    [
        ([0.29, 0.25], 2),
        ([0.0204, 0.0829], 3),  # the smallest decides
        ([0.1], 2),
        ([0.099], 3),
        ([12.0], 1),  # at least one
        ([1e-5], 4),  # and no more than are read
        ([1e-17, 0.0, 0.3], 2),  # equal scores, to rounding, say nothing
        ([None, 0.0], 4),
        ([], 4),
    ],
)
def test_decimals_show_two_digits_of_the_smallest_standard_error(errors, wanted):
    assert decimals(errors) == wanted
