"""How noisy each of stage 2's gradients is: `rtdmd gradient_noise [--config X] [--options=[…]] [--epochs N]`.

Rolls out epochs of a run without training it (learning rates 0), and takes the gradient of every term by itself: the policy
loss of each trained step, reward back-propagation, AC-DMD. What comes out is how much of a micro-batch's gradient is the same in
all of them, and so how well an epoch's gradient points where the average of endless epochs would. A term whose epoch points
nowhere moves the weights all the same: train it on other steps, with more images, or with a smaller weight.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("gradient_noise")

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from rtdmd_lightning import fit
from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.studies.gradient_noise import Moments, gradients
from rtdmd_lightning.utils.command_line import run_command, wide_console
from rtdmd_lightning.utils.errors import UserError, readable_errors

STILL = ["--model.generator_optimizer.learning_rate=0", "--model.fake_optimizer.learning_rate=0"]
ONE_PROCESS = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
WHOLE_BATCHES = ["--model.micro_batch_size=null", "--model.offload=null"]  # each is looked at outside of the update


def measure(config: Path, options: list[str], epochs: int) -> tuple[dict[str, Moments], int]:
    """The moments of each term over the micro-batches of some epochs, and how many of these an epoch has."""
    moments: dict[str, Moments] = defaultdict(Moments)
    with fit.bare_run(config, [*options, *STILL, *ONE_PROCESS, *WHOLE_BATCHES], epochs) as run:
        module = run.model
        if not isinstance(module, RTDMDModule):
            raise UserError(f"{config} is not a stage 2; this measures RTDMDModule, not {type(module).__name__}")

        def take_apart(rollouts: Sequence[Rollout], epoch: int, chosen: Sequence[int]) -> None:
            guidance_scale = module.matching.draw_guidance(module.seed, epoch)
            for rollout in rollouts:
                for name, of_term in gradients(module, rollout, chosen, guidance_scale):
                    moments[name].add(of_term)

        module.listeners.append(take_apart)
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
    run_command(gradient_noise, arguments)


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
