"""Learning curves of several variants over several seeds: equal budgets, a table, a plot.

A curve is what `RewardEvalCallback` wrote of one run: a row an evaluation, with `step`, `training_seconds` and the scores. Two
budgets make runs comparable: the number of generator updates and the seconds spent training, each the largest that every run
has reached. Between two evaluations a score is interpolated linearly; a run is never extrapolated.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from rtdmd_lightning.evaluation.statistics import Estimate, estimate
from rtdmd_lightning.utils.curve_names import score_name
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.json_text import read_rows

STEP, SECONDS = "step", "training_seconds"
AXES = {STEP: "generator updates", SECONDS: "seconds of training"}

DIGITS = ".3f"

Curve = list[dict[str, float]]
"""One run's evaluations in the order of their steps."""

Runs = Mapping[str, Mapping[int, Curve]]
"""Variant name to seed to curve."""


def read_curve(path: Path) -> Curve:
    """The rows of an `eval.jsonl`. A run that was interrupted evaluates some steps again: the last row of a step counts."""
    by_step = {row[STEP]: row for row in read_rows(path)}
    return [by_step[step] for step in sorted(by_step)]


def value_at(curve: Curve, metric: str, axis: str, position: float) -> float:
    """A metric at a place of an axis between the first and the last evaluation."""
    places = [row[axis] for row in curve]
    assert places[0] <= position <= places[-1], f"{axis} {position} lies outside {places[0]} to {places[-1]}"
    return float(np.interp(position, places, [row[metric] for row in curve]))


def common_budget(runs: Runs, axis: str) -> float:
    """The largest budget that every run has reached. Raises UserError where some run was not evaluated within it."""
    curves = [curve for by_seed in runs.values() for curve in by_seed.values()]
    budget = min(curve[-1][axis] for curve in curves)
    if max(curve[0][axis] for curve in curves) > budget:
        raise UserError(
            f"the runs share no budget: one ends at {budget:g} {AXES[axis]}, another's first evaluation comes later; "
            "evaluate more often (every_n_updates)"
        )
    return budget


def summarise(runs: Runs, metrics: Sequence[str]) -> dict:
    """Budgets, and per variant: its seeds, the seconds of an update, each metric at each budget.

    `difference` is to the first variant, over the seeds that both have: paired, because equal seeds mean equal prompts and
    equal noise.
    """
    reference, budgets = next(iter(runs)), {axis: common_budget(runs, axis) for axis in AXES}
    variants = {}
    for name, by_seed in runs.items():
        scores: dict[str, dict] = {axis: {} for axis in AXES}
        for axis, budget in budgets.items():
            for metric in metrics:
                values, theirs = (
                    {seed: value_at(curve, metric, axis, budget) for seed, curve in curves.items()}
                    for curves in (by_seed, runs[reference])
                )
                paired = [values[seed] - theirs[seed] for seed in values if seed in theirs and name != reference]
                difference = estimate(paired) if paired else None
                scores[axis][metric] = {"score": estimate(list(values.values())), "difference": difference}
        pace = [curve[-1][SECONDS] / curve[-1][STEP] for curve in by_seed.values()]
        updates = [value_at(curve, STEP, SECONDS, budgets[SECONDS]) for curve in by_seed.values()]
        variants[name] = {
            "seeds": list(by_seed),
            "seconds_per_update": float(np.mean(pace)),
            "updates_at_equal_seconds": float(np.mean(updates)),
            "scores": scores,
        }
    return {"budgets": budgets, "reference": reference, "variants": variants}


def markdown_table(summary: dict, metrics: Sequence[str]) -> str:
    """A row per variant, and below it how to read the table."""
    budgets, reference = summary["budgets"], summary["reference"]
    columns = [(axis, metric) for axis in AXES for metric in metrics]
    titles = [
        title
        for axis, metric in columns
        for title in (f"{score_name(metric)} at {budgets[axis]:.0f} {AXES[axis]}", f"less {reference}'s")
    ]
    lines = [["variant", "seeds", "s/update", *titles], ["---"] + ["---:"] * (2 + len(titles))]
    for name, variant in summary["variants"].items():
        cells = [variant["scores"][axis][metric] for axis, metric in columns]
        scores = [text for cell in cells for text in (f"{cell['score']:{DIGITS}}", _signed(cell["difference"]))]
        lines.append([name, str(len(variant["seeds"])), f"{variant['seconds_per_update']:.2f}", *scores])
    note = (
        "Mean ± standard error over seeds (of the training; prompts and noise of the evaluation are the same for all). "
        f"Differences are paired by seed. Equal seconds: the {budgets[SECONDS]:.0f} s of training, evaluations not "
        "counted, that the fastest run took; scores between two evaluations are interpolated."
    )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{note}\n"


def _signed(difference: Estimate | None) -> str:
    if difference is None:
        return ""
    text = f"{difference:{DIGITS}}"
    return text if difference.mean < 0 else f"+{text}"


def plot(runs: Runs, metrics: Sequence[str], path: Path) -> None:
    """A row per metric, a column per axis: the mean over seeds, and a band of one standard error where seeds are several."""
    figure = Figure(figsize=(6.5 * len(AXES), 4.2 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), len(AXES), squeeze=False, sharey="row")
    for row, metric in enumerate(metrics):
        for column, axis in enumerate(AXES):
            panel = panels[row, column]
            for name, by_seed in runs.items():
                places, means, errors = band(list(by_seed.values()), metric, axis)
                (line,) = panel.plot(places, means, label=f"{name} ({len(by_seed)})")
                panel.fill_between(places, means - errors, means + errors, color=line.get_color(), alpha=0.15, lw=0)
            panel.set_xlabel(AXES[axis])
            panel.grid(alpha=0.3)
        panels[row, 0].set_ylabel(score_name(metric))
    panels[0, -1].legend(title="variant (seeds)", fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def band(
    curves: Sequence[Curve], metric: str, axis: str, points: int = 60
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places that all the curves cover, with the mean and the standard error there (0 for one curve)."""
    first, last = max(curve[0][axis] for curve in curves), min(curve[-1][axis] for curve in curves)
    places = np.linspace(first, last, points)
    estimates = [estimate([value_at(curve, metric, axis, place) for curve in curves]) for place in places]
    return places, np.array([e.mean for e in estimates]), np.array([e.error or 0.0 for e in estimates])
