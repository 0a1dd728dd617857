"""A cycle of stage 1: which of its samples each update uses, and the samples themselves.

Updates are drawn by a generator of (seed, cycle), so they are the same on all ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rtdmd_lightning.sampling.structures import Conditioning, Trajectory
from rtdmd_lightning.utils.randomness import SampleRandom


@dataclass(frozen=True)
class Update:
    """Which batch of a cycle's samples an update uses, and after how many executed steps (1 to K) its rollout stops."""

    batch: int
    stop: int


def draw_shared(generator: torch.Generator, stops: int, batches: int, ratio: int) -> tuple[list[Update], Update]:
    """A cycle's `ratio` fake-score updates, each at a boundary of its own of whole trajectories; and its generator update."""
    order = torch.randperm(batches * stops, generator=generator).tolist()[:ratio]
    fake_updates = [Update(index // stops, index % stops + 1) for index in order]
    return fake_updates, Update(_draw(batches, generator), _draw(stops, generator) + 1)


def draw_in_turn(
    generator: torch.Generator, stops: int, batches: int, ratio: int, *, random_stop: bool
) -> tuple[list[Update], Update]:
    """The same where each update has a rollout of its own, which stops after a random number of steps, or after all.

    As the authors have it, the generator's update takes the prompts of the last one before it, with noise of its own.
    """
    in_turn = [*range(batches), batches - 1]
    updates = [Update(batch, _draw(stops, generator) + 1 if random_stop else stops) for batch in in_turn]
    return updates[:ratio], updates[ratio]


def _draw(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


@dataclass(frozen=True)
class Samples:
    """Some of a cycle's samples while they wait for their updates: on the device, or, with micro-batches, on the CPU.

    `trajectory` is their whole rollout, where the updates of a cycle share it.
    """

    conditioning: Conditioning
    random: SampleRandom
    trajectory: Trajectory | None = None

    def __len__(self) -> int:
        return len(self.conditioning)

    def split(self, size: int) -> "list[Samples]":
        """In parts of so many samples, which are views."""
        parts = [slice(start, start + size) for start in range(0, len(self), size)]
        return [
            Samples(self.conditioning[part], self.random[part], self.trajectory and self.trajectory[part])
            for part in parts
        ]


def split(samples: Sequence[Samples], size: int) -> list[Samples]:
    """The same samples in parts of `size`."""
    return [part for several in samples for part in several.split(size)]
