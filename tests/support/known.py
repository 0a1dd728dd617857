"""Known velocity fields and known draws in the place of network and random numbers, and the equations of METHOD written out.

With them a loss has a value that can be computed beside the module: by hand, from the letters of METHOD.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.sampling.structures import Conditioning

SHAPE = (4, 8, 8)  # one latent of `tests.support.tiny`'s pipeline
ETA = 0.9
COS, SIN = math.cos(ETA * math.pi / 2), math.sin(ETA * math.pi / 2)

Field = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""Latents `[B, C, H, W]` at levels `[B, 1, 1, 1]` with their conditioning to a velocity."""


def with_fields(module: FewStepModule, **fields: Field) -> None:
    """Each role's forward pass becomes a known function; a role that is not given must not run."""

    def velocity(role: str, latents: Tensor, sigma: Tensor | float, conditioning: Conditioning) -> Tensor:
        assert len(latents) == len(conditioning)
        levels = torch.as_tensor(sigma, dtype=latents.dtype).expand(len(latents))
        return fields[role](latents, per_sample(levels), conditioning)

    module.roles.velocity = velocity


def linear(slope: Tensor | float) -> Field:
    return lambda latents, levels, conditioning: slope * latents


class KnownDraws:
    """In the place of `SampleRandom`: prepared tensors, handed out in the order in which they are asked for."""

    def __init__(self, uniforms: Sequence[Tensor], normals: Sequence[Tensor]) -> None:
        self.uniforms, self.normals = list(uniforms), list(normals)

    def ahead(self, normals: Mapping[str, Sequence[int]], uniforms: Sequence[str] = ()) -> "KnownDraws":
        return self

    def uniform(self, purpose: str) -> Tensor:
        return self.uniforms.pop(0)

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        return self.normals.pop(0)


def randn(count: int, seed: int) -> Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def per_sample(levels: Tensor) -> Tensor:
    return levels.view(-1, 1, 1, 1)


def renoised(x: Tensor, s: float, uniform: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """METHOD section 3.1: `t` and `σ_ts`, both `[B, 1, 1, 1]`, and `x_t`."""
    t = per_sample(((1000 * s + 10) * (1 - uniform) + 1000 * uniform).clamp(20, 980) / 1000)
    a = (1 - t) / (1 - s)
    width = (t**2 - a**2 * s**2).sqrt()
    return t, width, a * x + width * z


def cps_mean(x: Tensor, v: Tensor, t: Tensor | float, t_next: Tensor | float) -> Tensor:
    """METHOD section 1: `(1-σ')·(x - σ·v) + σ'·cos(ηπ/2)·(x + (1-σ)·v)`."""
    return (1 - t_next) * (x - t * v) + t_next * COS * (x + (1 - t) * v)


def mean_abs(x: Tensor) -> Tensor:
    """Per sample, `[B, 1, 1, 1]`."""
    return x.abs().mean(dim=(1, 2, 3), keepdim=True)


def count_passes(module: FewStepModule) -> Counter[tuple[str, bool]]:
    """Samples that the transformer sees from now on, by role and by whether a gradient is kept."""
    counts: Counter[tuple[str, bool]] = Counter()
    original = module.roles.velocity

    def velocity(role: str, latents: Tensor, sigma: Tensor | float, conditioning: Conditioning) -> Tensor:
        counts[role, torch.is_grad_enabled()] += len(latents)
        return original(role, latents, sigma, conditioning)

    module.roles.velocity = velocity
    return counts
