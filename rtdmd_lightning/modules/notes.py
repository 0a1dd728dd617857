"""Numbers that are noted sample by sample during a training step, and logged once at its end, of all processes together."""

from collections.abc import Callable

import torch
from torch import Tensor

from rtdmd_lightning.losses.terms import Terms


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

    def ratios(self, deviations: Tensor, clip_range: float) -> None:
        """Note how far probability ratios are from 1, `[B]`: the largest of all, and how many of them are clipped."""
        self.largest("policy/ratio_deviation", deviations)
        self.mean("policy/clipped", (deviations > clip_range).float())

    def summary(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The numbers by name, over all processes; what was noted is forgotten. Names without any sample are left out.

        `gather` brings a `[N]` tensor of every process together as `[processes * N]`.
        """
        found = {}
        for name, noted in self._mean.items():
            values = torch.cat(noted)
            counts = gather(torch.tensor([len(values)], device=values.device))
            if counts.sum() > 0:
                found[name] = gather(values.sum()[None]).sum() / counts.sum()
        for name, noted in self._largest.items():
            values = torch.cat(noted)
            largest = gather(torch.cat([values, values.new_full((1,), -torch.inf)]).max()[None]).max()
            if largest > -torch.inf:
                found[name] = largest
        self._mean, self._largest = {}, {}
        return found
