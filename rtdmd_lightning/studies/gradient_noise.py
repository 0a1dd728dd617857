"""Signal and noise of gradients, term by term, from some micro-batches at fixed weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.roles.roles import GENERATOR


@dataclass
class Moments:
    """Of the gradients `g_1 … g_n` of equally many samples each, what tells their mean from their noise: `Σ g` and `Σ |g|²`.

    `signal` is `|E g|²` without bias, `(|Σ g|² - Σ |g|²) / (n (n-1))`: chance may make it negative.
    """

    count: int = 0
    total: Tensor | float = 0.0
    squares: float = 0.0

    def add(self, gradient: Tensor) -> None:
        """One more gradient, `[D]`."""
        self.count += 1
        self.total = self.total + gradient
        self.squares += float(gradient.square().sum())

    @property
    def power(self) -> float:
        """`E |g|²`: mean and noise together."""
        return self.squares / self.count

    @property
    def signal(self) -> float:
        return (float(torch.as_tensor(self.total).square().sum()) - self.squares) / (self.count * (self.count - 1))

    @property
    def share(self) -> float:
        """Signal in power: the expected cosine of two micro-batches' gradients, about."""
        return self.signal / self.power if self.power else 0.0  # no sample of any group had an advantage

    def cosine(self, count: int) -> float:
        """Of the average over `count` micro-batches with the true mean, about."""
        share = max(self.share, 0.0)
        return (share / (share + (1 - share) / count)) ** 0.5


def gradient(module: RTDMDModule, loss: Tensor) -> Tensor:
    """`[D]`, by all parameters of the generator's adapter. The graph stays, for another loss of the same forward pass."""
    parameters = module.roles.parameters_of(GENERATOR)
    with module.roles.role(GENERATOR):
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def gradients(
    module: RTDMDModule, rollout: Rollout, chosen: Sequence[int], guidance_scale: float
) -> Iterator[tuple[str, Tensor]]:
    """Of the generator's loss of one micro-batch, term by term, with the weights that they have in the run.

    Those at the last step are of its samples that have an advantage, and zero for the others.
    """
    conditioning = module.embed(rollout.batch.prompts, module.device)
    for step in chosen:
        for name, term in module.policy_loss(rollout, step, conditioning).items():
            yield f"{name}, step {step}", gradient(module, term.weight * term.value)
    rows = module.kept_rows(rollout)
    for name, term in module.final_terms(rollout, rows, guidance_scale).items():
        yield name, gradient(module, len(rows) / len(rollout) * term.weight * term.value)
