"""Equal budgets, means and errors, against numbers worked out by hand."""

import json

import matplotlib.image
import numpy as np
import pytest

from rtdmd_lightning.evaluation.statistics import estimate
from rtdmd_lightning.studies.curves import (
    SECONDS,
    STEP,
    band,
    common_budget,
    markdown_table,
    plot,
    read_curve,
    summarise,
    value_at,
)
from rtdmd_lightning.utils.errors import UserError

METRIC = "eval/shapes_strict"


def straight(*, slope: float, pace: float, offset: float = 0.0, steps=(20, 40, 100)) -> list[dict]:
    """A score that grows by `slope` an update, an update taking `pace` seconds."""
    return [{STEP: step, SECONDS: pace * step, METRIC: offset + slope * step} for step in steps]


@pytest.fixture
def runs():
    """The second variant learns twice as fast per update and takes half as long; seeds shift both alike."""
    return {
        "slow": {seed: straight(slope=0.001, pace=1.0, offset=0.1 * seed) for seed in (0, 1, 2)},
        "fast": {seed: straight(slope=0.002, pace=0.5, offset=0.1 * seed) for seed in (0, 1)},
    }


def test_a_curve_keeps_the_last_row_of_a_step_that_a_resumed_run_evaluated_again(tmp_path):
    rows = [(20, 0.1), (40, 0.2), (20, 0.3), (60, 0.4)]
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps({STEP: step, METRIC: score}) + "\n" for step, score in rows))
    assert [(row[STEP], row[METRIC]) for row in read_curve(path)] == [(20, 0.3), (40, 0.2), (60, 0.4)]


def test_values_between_evaluations_are_interpolated_and_never_extrapolated():
    curve = [{STEP: 10, METRIC: 0.0}, {STEP: 20, METRIC: 1.0}, {STEP: 40, METRIC: 0.0}]
    assert [value_at(curve, METRIC, STEP, at) for at in (10, 15, 20, 25, 40)] == [0.0, 0.5, 1.0, 0.75, 0.0]
    for outside in (9, 41):
        with pytest.raises(AssertionError, match="lies outside 10 to 40"):
            value_at(curve, METRIC, STEP, outside)


def test_standard_error_is_the_unbiased_deviation_over_root_n():
    found = estimate([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5 and found.error == pytest.approx((5 / 3) ** 0.5 / 2)
    assert f"{found:.3f}" == "2.500 ± 0.645"
    assert estimate([0.5]).error is None and f"{estimate([0.5]):.3f}" == "0.500"


def test_budgets_are_the_largest_that_every_run_reached(runs):
    assert common_budget(runs, STEP) == 100 and common_budget(runs, SECONDS) == 50
    runs["slow"][1] = runs["slow"][1][:2]
    assert common_budget(runs, STEP) == 40 and common_budget(runs, SECONDS) == 40


def test_runs_without_a_shared_budget_are_refused():
    runs = {"slow": {0: straight(slope=0, pace=9)}, "fast": {0: straight(slope=0, pace=1)}}
    with pytest.raises(UserError, match="evaluate more often"):
        common_budget(runs, SECONDS)


def test_scores_at_equal_updates_and_at_equal_seconds(runs):
    summary = summarise(runs, [METRIC])
    slow, fast = summary["variants"]["slow"], summary["variants"]["fast"]
    assert slow["scores"][STEP][METRIC]["score"].mean == pytest.approx(0.1 + 0.1)
    assert slow["scores"][SECONDS][METRIC]["score"].mean == pytest.approx(0.05 + 0.1)
    assert fast["scores"][STEP][METRIC]["score"].mean == pytest.approx(0.2 + 0.05)
    assert fast["scores"][SECONDS][METRIC]["score"].mean == pytest.approx(0.2 + 0.05)
    assert slow["scores"][STEP][METRIC]["score"].error == pytest.approx(0.1 / 3**0.5)
    assert (slow["updates_at_equal_seconds"], fast["updates_at_equal_seconds"]) == (50, 100)
    assert (slow["seconds_per_update"], fast["seconds_per_update"]) == (1.0, 0.5)


def test_differences_are_paired_by_seed_over_the_seeds_that_both_have(runs):
    """Seeds shift both variants alike, so the difference has no error, however far apart the seeds are."""
    scores = summarise(runs, [METRIC])["variants"]["fast"]["scores"]
    for axis, expected in ((STEP, 0.1), (SECONDS, 0.15)):
        difference = scores[axis][METRIC]["difference"]
        assert difference.mean == pytest.approx(expected) and difference.error == pytest.approx(0, abs=1e-12)
    runs["fast"] = {7: runs["fast"][0]}
    assert summarise(runs, [METRIC])["variants"]["fast"]["scores"][STEP][METRIC]["difference"] is None


def test_the_table_has_a_row_per_variant_with_score_and_signed_difference(runs):
    runs["worse"] = {0: straight(slope=0.0, pace=1.0)}
    lines = markdown_table(summarise(runs, [METRIC]), [METRIC]).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert rows[0][3:] == [
        "shapes_strict at 100 generator updates",
        "less slow's",
        "shapes_strict at 50 seconds of training",
        "less slow's",
    ]
    assert {len(row) for row in rows} == {7}
    assert rows[2] == ["slow", "3", "1.00", "0.200 ± 0.058", "", "0.150 ± 0.058", ""]
    assert rows[3] == ["fast", "2", "0.50", "0.250 ± 0.050", "+0.100 ± 0.000", "0.250 ± 0.050", "+0.150 ± 0.000"]
    assert rows[4] == ["worse", "1", "1.00", "0.000", "-0.100", "0.000", "-0.050"]


def test_a_band_covers_what_all_seeds_cover():
    curves = [
        straight(slope=0.01, pace=1.0, offset=shift, steps=steps) for shift, steps in ((0, (10, 50)), (0.2, (20, 60)))
    ]
    places, means, errors = band(curves, METRIC, STEP, points=3)
    np.testing.assert_allclose(places, [20, 35, 50])
    np.testing.assert_allclose(means, 0.01 * places + 0.1)
    np.testing.assert_allclose(errors, 0.1)
    np.testing.assert_array_equal(band(curves[:1], METRIC, STEP, points=3)[2], 0)


def test_the_plot_is_a_picture_that_is_not_empty(runs, tmp_path):
    plot(runs, [METRIC], tmp_path / "curves.png")
    picture = matplotlib.image.imread(tmp_path / "curves.png")[..., :3]
    assert min(picture.shape[:2]) > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
