"""A few-step generator whose expected reward, and its gradient, are known exactly.

The velocity is linear in `f = (x, p, 1)`, a latent and a prompt of D numbers each: `v = (base + w_k·θ)·f`. As in stage 2, a fresh
adapter θ = 0 on a frozen base is trained, one θ `[D, 2D+1]` for all steps; `w_k` is how strongly it acts at step k. Start, CPS
steps and fresh noise are jointly Gaussian, so the mean and covariance of the clean sample follow from the sampler's own step,
and with a linear-quadratic reward so does the expected reward.

Giving each step a θ of its own splits the gradient: for a stochastic step k, `∂J/∂θ_k = E[r·∇log p(x_{k+1} | x_k)]` is what the
policy gradient of that step estimates; for the last, deterministic one it is the expected derivative through that forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from rtdmd_lightning.objectives import cps_mean_std

SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)
PROMPTS = ((1.0, 0.5), (-0.5, 1.0), (-1.0, -1.0), (0.5, -0.5))
BASE = ((0.8, 0.1, -0.5, 0.1, 0.2), (-0.1, 0.7, -0.1, -0.6, -0.1))


@dataclass(frozen=True)
class LinearGaussian:
    """The generator, its prompts and its schedule; parameters and states are float64.

    Args:
        eta: Stochasticity of the CPS steps, in (0, 1].
        step_scales: `w_k` of each step.
        curvature: q of the reward `p·x0 - q/2·|x0|²`; 0 makes it linear.
        sigmas: The levels, from 1 to 0; the last step is the deterministic one.
        prompts: P vectors of D numbers. An update holds a group of samples of each.
        base: The frozen velocity: D rows of 2D+1 numbers.
    """

    eta: float = 0.9
    step_scales: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
    curvature: float = 1.0
    sigmas: Sequence[float] = SIGMAS
    prompts: Sequence[Sequence[float]] = PROMPTS
    base: Sequence[Sequence[float]] = BASE

    @property
    def theta(self) -> Tensor:
        """The fresh adapter, `[D, 2D+1]`: zeros."""
        return torch.zeros(len(self.base), len(self.base[0]), dtype=torch.float64)

    @property
    def prompt_vectors(self) -> Tensor:
        """`[P, D]`."""
        return torch.tensor(self.prompts, dtype=torch.float64)

    @property
    def steps(self) -> list[tuple[float, float]]:
        """`(σ, σ')` of each step; the last has σ' = 0."""
        return list(pairwise(self.sigmas))

    def velocity(self, theta: Tensor, step: int, latents: Tensor, prompts: Tensor) -> Tensor:
        """`(base + w_k·θ)·(x, p, 1)`: θ `[..., D, 2D+1]`, latents and prompts `[..., N, D]`."""
        features = torch.cat([latents, prompts, torch.ones_like(latents[..., :1])], dim=-1)
        return features @ self._weight(theta, step).mT

    def _weight(self, theta: Tensor, step: int) -> Tensor:
        return torch.tensor(self.base, dtype=torch.float64) + self.step_scales[step] * theta

    def reward(self, samples: Tensor, prompts: Tensor) -> Tensor:
        """`p·x0 - q/2·|x0|²`, one number for each of `[..., D]`."""
        return (prompts * samples).sum(dim=-1) - self.curvature / 2 * samples.square().sum(dim=-1)

    def expected_reward(self, thetas: Tensor) -> Tensor:
        """The exact expectation, averaged over the prompts; θ of each step in `thetas` `[steps, D, 2D+1]`.

        A CPS step is affine in x: the mean moves as a sample without noise does, the covariance by the step's linear part.
        """
        prompts = self.prompt_vectors
        basis = torch.eye(prompts.shape[1], dtype=torch.float64)
        mean, covariance = torch.zeros_like(prompts), basis
        for step, (sigma, sigma_next) in enumerate(self.steps):
            levels = {"sigma": sigma, "sigma_next": sigma_next, "eta": self.eta}
            linear_velocity = self._weight(thetas[step], step)[:, : len(basis)].mT
            linear, std = cps_mean_std(basis, linear_velocity, **levels)
            mean, _ = cps_mean_std(mean, self.velocity(thetas[step], step, mean, prompts), **levels)
            covariance = linear.mT @ covariance @ linear + std**2 * basis
        return self.reward(mean, prompts).mean() - self.curvature / 2 * covariance.trace()

    def step_gradients(self) -> Tensor:
        """`∂J/∂θ_k`, `[steps, D·(2D+1)]`; their sum is the gradient of the expected reward."""
        thetas = self.theta.expand(len(self.steps), -1, -1).clone().requires_grad_()
        (gradients,) = torch.autograd.grad(self.expected_reward(thetas), thetas)
        return gradients.flatten(1)

    def gradient(self) -> Tensor:
        """The gradient of the expected reward with respect to the shared θ, `[D·(2D+1)]`."""
        return self.step_gradients().sum(dim=0)
