"""Random numbers that belong to the sample, not to the process.

Every draw is a function of (seed, sample index, purpose), so a run is the same run on one process or on many, at whatever
per-process batch size, and a resumed run needs no generator state. Draws shared by a whole batch (the random stop, the
guidance scale) take the update's number for the sample index and so agree on all ranks without communication.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rtdmd_lightning.utils.transfer import send


def keyed_generator(seed: int, index: int, purpose: str) -> torch.Generator:
    """A CPU generator of its own for (seed, index, purpose)."""
    digest = hashlib.blake2b(f"{seed}/{index}/{purpose}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@dataclass(frozen=True)
class SampleRandom:
    """The random numbers of B samples, known by their global indices. Draws are made on the CPU and moved to `device`.

    `use` tells apart the draws of a sample that is used more than once for the same purposes. `normals` and `uniforms` are those
    that were drawn `ahead`, by purpose.
    """

    seed: int
    indices: Sequence[int]
    device: torch.device
    use: str = ""
    normals: Mapping[str, Tensor] = field(default_factory=dict)
    uniforms: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, index: slice) -> "SampleRandom":
        normals, uniforms = (
            {purpose: values[index] for purpose, values in drawn.items()} for drawn in (self.normals, self.uniforms)
        )
        return replace(self, indices=self.indices[index], normals=normals, uniforms=uniforms)

    def for_use(self, use: str) -> "SampleRandom":
        """Other random numbers of the same samples."""
        return replace(self, use=f"{use} ", normals={}, uniforms={})

    def ahead(self, normals: Mapping[str, Sequence[int]], uniforms: Sequence[str] = ()) -> "SampleRandom":
        """The same random numbers, of which these are drawn now: they reach the device in one copy, see `send`.

        `normals` are shapes by purpose. What is asked for later and was not drawn ahead is a copy of its own.
        """
        drawn = [
            torch.stack([torch.randn(tuple(shape), generator=generator) for generator in self._generators(purpose)])
            for purpose, shape in normals.items()
        ]
        drawn += [
            torch.stack([torch.rand((), generator=generator) for generator in self._generators(purpose)])
            for purpose in uniforms
        ]
        there = send(drawn, self.device)
        of_normals, of_uniforms = there[: len(normals)], there[len(normals) :]
        return replace(
            self,
            normals=dict(zip(normals, of_normals, strict=True)),
            uniforms=dict(zip(uniforms, of_uniforms, strict=True)),
        )

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal, `[B, *shape]` float32."""
        if purpose not in self.normals:
            return self.ahead({purpose: shape}).normals[purpose]
        return self.normals[purpose]

    def uniform(self, purpose: str) -> Tensor:
        """Uniform in [0, 1), `[B]` float32."""
        if purpose not in self.uniforms:
            return self.ahead({}, [purpose]).uniforms[purpose]
        return self.uniforms[purpose]

    def _generators(self, purpose: str):
        return (keyed_generator(self.seed, index, f"{self.use}{purpose}") for index in self.indices)
