"""Random numbers that belong to the sample, not to the process.

Every draw is a function of (seed, sample index, purpose), so a run is the same run on one process or on many, at whatever
per-process batch size, and a resumed run needs no generator state. Draws shared by a whole batch (the random stop, the
guidance scale) take the update's number for the sample index and so agree on all ranks without communication.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


def keyed_generator(seed: int, index: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for (seed, index, purpose)."""
    digest = hashlib.blake2b(f"{seed}/{index}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class SampleRandom:
    """The random numbers of B samples, known by their global indices. Draws are made on the CPU and moved to `device`.

    `use` tells apart the draws of a sample that is used more than once for the same purposes.
    """

    seed: int
    indices: Sequence[int]
    device: torch.device
    use: str = ""

    def __getitem__(self, index: slice) -> "SampleRandom":
        return replace(self, indices=self.indices[index])

    def for_use(self, use: str) -> "SampleRandom":
        """Other random numbers of the same samples."""
        return replace(self, use=f"{use} ")

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal, `[B, *shape]` float32."""
        draws = [torch.randn(tuple(shape), generator=generator) for generator in self._generators(purpose)]
        return torch.stack(draws).to(self.device)

    def uniform(self, purpose: str) -> Tensor:
        """Uniform in [0, 1), `[B]` float32."""
        draws = [torch.rand((), generator=generator) for generator in self._generators(purpose)]
        return torch.stack(draws).to(self.device)

    def _generators(self, purpose: str):
        return (keyed_generator(self.seed, index, f"{self.use}{purpose}") for index in self.indices)
