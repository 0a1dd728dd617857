"""Means, their standard errors, and differences between entries that drew the same prompts from the same noise."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
FEWEST_DECIMALS, MOST_DECIMALS = 1, 4
ROUNDING = 1e-9  # a standard error below it is of equal scores


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, which a single value does not have. A format like `.3f` is for both numbers."""

    mean: float
    error: float | None

    def __format__(self, spec: str) -> str:
        return format(self.mean, spec) if self.error is None else f"{self.mean:{spec}} ± {self.error:{spec}}"


@dataclass(frozen=True)
class Difference:
    """A mean difference, its standard error (None for a single pair) and its confidence interval (NaN likewise)."""

    mean: float
    error: float | None
    low: float
    high: float


def per_prompt(scores: Sequence[float], prompts: int) -> list[float]:
    """Of K images each of N prompts, scored prompt by prompt and K times over, the N prompts' means.

    The images of a prompt are no independent samples of the prompts: what is estimated below takes one number a prompt.
    """
    return np.reshape(scores, (-1, prompts)).mean(axis=0).tolist()


def estimate(scores: Sequence[float]) -> Estimate:
    """Of N scores: their mean, and s / sqrt(N) with the unbiased s."""
    return Estimate(float(np.mean(scores)), float(stats.sem(scores)) if len(scores) > 1 else None)


def paired_difference(scores: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Mean of `scores - baseline`, prompt by prompt, and Student's 95% interval of it.

    Pairing takes out what a prompt's difficulty and the noise do to both, most of the variance.
    """
    differences = np.subtract(scores, baseline)
    spread = estimate(differences.tolist())
    if spread.error is None:
        return Difference(spread.mean, None, math.nan, math.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * spread.error
    return Difference(spread.mean, spread.error, spread.mean - half, spread.mean + half)


def decimals(errors: Iterable[float | None]) -> int:
    """How many decimals numbers with these standard errors deserve: those that show two digits of the smallest one."""
    known = [error for error in errors if error is not None and error > ROUNDING]
    if not known:
        return MOST_DECIMALS
    return min(MOST_DECIMALS, max(FEWEST_DECIMALS, 1 - math.floor(math.log10(min(known)))))


def per_tag(scores: Sequence[float], tags: Sequence[str]) -> dict[str, float]:
    """Mean of every tag in order of appearance, and as `overall` the mean of those, as GenEval reports it."""
    by_tag = {
        tag: float(np.mean([score for score, other in zip(scores, tags, strict=True) if other == tag]))
        for tag in dict.fromkeys(tags)
    }
    return by_tag | {"overall": float(np.mean(list(by_tag.values())))}
