"""Numbers that are noted sample by sample during a training step, and logged once at its end, of all processes together."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rtdmd_lightning.losses.policy import PolicyLoss
from rtdmd_lightning.losses.terms import Terms

RATIO_DEVIATION = "policy/ratio_deviation"
"""How far a probability ratio is from 1, the largest."""


def on_host(number: float) -> Tensor:
    """What a number is logged as: Lightning would copy the number to the device, which waits for all that is under way there."""
    return torch.tensor(float(number))


class Notes:
    """What was noted since the last `summary`. All processes note the same names, though not equally many samples."""

    def __init__(self) -> None:
        self._mean: dict[str, list[Tensor]] = {}
        self._largest: dict[str, list[Tensor]] = {}

    def mean(self, name: str, of_samples: Tensor) -> None:
        """Note values `[B]` whose mean is to be logged."""
        self._mean.setdefault(name, []).append(of_samples.detach().float())

    def largest(self, name: str, of_samples: Tensor) -> None:
        """Note values `[B]` whose largest is to be logged."""
        self._largest.setdefault(name, []).append(of_samples.detach().float())

    def terms(self, role: str, terms: Terms, count: int, part: str = "") -> None:
        """Note the terms of `count` samples, unweighted, by role and name, and their weights; `part` is the step they are of."""
        for name, term in terms.items():
            self.mean(f"{role}/{name}_{part}" if part else f"{role}/{name}", term.value.detach().expand(count))
            self.mean(f"weight/{role}/{name}", term.value.new_full((1,), term.weight))

    def ratios(self, loss: PolicyLoss) -> None:
        """Note how far the probability ratios of its last call are from 1: the largest of all, and how many are clipped."""
        self.largest(RATIO_DEVIATION, loss.ratios)
        self.mean("policy/clipped", (loss.ratios > loss.settings.clip_range).float())
        if loss.from_update:
            self.largest("policy/rollout_deviation", loss.rollout_ratios)

    def largest_of(self, name: str, gather: Callable[[Tensor], Tensor]) -> float | None:
        """The largest that is noted of a name by now, over all processes; None where nothing is."""
        if name not in self._largest:
            return None
        largest = float(gather(_largest(self._largest[name])[None]).max())
        return None if largest == -math.inf else largest

    def summary(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The numbers by name, on the CPU, over all processes; what was noted is forgotten. Names without a sample are left out.

        `gather` brings a `[N]` tensor of every process together as `[processes * N]`. All numbers travel together, and are read
        from the device once.
        """
        means, largest = list(self._mean), list(self._largest)
        if not means and not largest:
            return {}
        sums = [torch.cat(noted).sum() for noted in self._mean.values()]
        counts = [float(sum(map(len, noted))) for noted in self._mean.values()]
        peaks = [_largest(noted) for noted in self._largest.values()]
        numbers = torch.stack([*sums, *peaks])
        everyones = gather(torch.cat([numbers, *(numbers.new_full((1,), count) for count in counts)])).cpu()
        of_sums, of_peaks, of_counts = everyones.view(-1, len(numbers) + len(counts)).split(
            [len(sums), len(peaks), len(counts)], dim=1
        )
        self._mean, self._largest = {}, {}
        total = of_counts.sum(dim=0)
        found = {
            name: value / count
            for name, value, count in zip(means, of_sums.sum(dim=0), total, strict=True)
            if count > 0
        }
        return found | {
            name: value for name, value in zip(largest, of_peaks.amax(dim=0), strict=True) if value > -math.inf
        }


def _largest(noted: list[Tensor]) -> Tensor:
    """A scalar; minus infinity of no sample."""
    values = torch.cat(noted)
    return torch.cat([values, values.new_full((1,), -math.inf)]).max()
