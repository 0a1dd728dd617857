"""How noisy each of stage 2's gradients is: `python -m rtdmd_lightning.gradient_noise [--config X] [--options=[…]] [--epochs N]`.

Rolls out epochs of a run without training it (learning rates 0), and takes the gradient of every term by itself: the policy
loss of each trained step, reward back-propagation, AC-DMD. What comes out is how much of a micro-batch's gradient is the same in
all of them, and so how well an epoch's gradient points where the average of endless epochs would. A term whose epoch points
nowhere moves the weights all the same: train it on other steps, with more images, or with a smaller weight.
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from rtdmd_lightning import fit
from rtdmd_lightning.command_line import run_command, wide_console
from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.errors import UserError, readable_errors
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.modules.roles import GENERATOR

STILL = ["--model.generator_optimizer.learning_rate=0", "--model.fake_optimizer.learning_rate=0"]
ONE_PROCESS = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]


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
    parameters = module.parameters_of(GENERATOR)
    with module.roles.role(GENERATOR):
        parts = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def gradients(
    module: RTDMDModule, rollout: Rollout, chosen: Sequence[int], guidance_scale: float
) -> Iterator[tuple[str, Tensor]]:
    """Of the generator's loss of one micro-batch, term by term, with the weights that they have in the run."""
    for step in chosen:
        yield f"policy, step {step}", gradient(module, module.policy_loss(rollout, step))
    last = module.final_step_terms(rollout, module.kept_rows(rollout), guidance_scale)
    for name, loss in last.items():
        yield name, gradient(module, loss)


def measure(config: Path, options: list[str], epochs: int) -> tuple[dict[str, Moments], int]:
    """The moments of each term over the micro-batches of some epochs, and how many of these an epoch has."""
    moments: dict[str, Moments] = defaultdict(Moments)
    with fit.bare_run(config, [*options, *STILL, *ONE_PROCESS], epochs) as run:
        module = run.model
        if not isinstance(module, RTDMDModule):
            raise UserError(f"{config} is not a stage 2; this measures RTDMDModule, not {type(module).__name__}")

        def take_apart(rollouts: Sequence[Rollout], epoch: int, chosen: Sequence[int]) -> None:
            guidance_scale = module.draw_guidance(epoch)
            for rollout in rollouts:
                for name, of_sum in gradients(module, rollout, chosen, guidance_scale):
                    moments[name].add(of_sum / len(rollout.advantages))
            module.step_optimizer(GENERATOR)  # no gradients: nothing moves, but the epoch is counted

        module.update_generator = take_apart  # type: ignore[method-assign]
        run.trainer.fit(module, run.datamodule)
    return dict(moments), module.micro_batches


def gradient_noise(
    config: Path = Path("configs/rtdmd/tiny_sd3.yaml"), options: list[str] | None = None, epochs: int = 24
) -> None:
    """Measure and print a table.

    Args:
        config: of the stage 2 whose gradients are measured.
        options: overrides for it, as on the command line of `rtdmd_lightning.fit`.
        epochs: how many to roll out; the error of a share falls with their number.
    """
    if epochs < 1:
        raise UserError(f"epochs must be at least 1, not {epochs}")
    moments, micro_batches = measure(config, options or [], epochs)
    if once := [name for name, of_term in moments.items() if of_term.count < 2]:
        raise UserError(f"of {', '.join(once)} there is one gradient, whose noise cannot be told: give more epochs")
    table = Table(title=f"{config}: {epochs} epochs of {micro_batches} micro-batches")
    for column in ("term", "norm of one", "norm of the mean", "mean in one (power)", "cosine of an epoch"):
        table.add_column(column, justify="left" if column == "term" else "right")
    for name, of_term in moments.items():
        norms = (of_term.power**0.5, max(of_term.signal, 0.0) ** 0.5)
        table.add_row(
            name, *(f"{norm:.2e}" for norm in norms), f"{of_term.share:.4f}", f"{of_term.cosine(micro_batches):.2f}"
        )
    wide_console().print(table)


def main(arguments: list[str]) -> None:
    run_command(gradient_noise, "rtdmd_lightning.gradient_noise", arguments)


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
