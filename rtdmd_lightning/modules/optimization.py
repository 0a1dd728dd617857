"""Optimizers and averages: their options, as they appear in a config, and what they do."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rtdmd_lightning.modules.notes import on_host
from rtdmd_lightning.roles.roles import GENERATOR
from rtdmd_lightning.roles.sharding import gradient_sync_paused
from rtdmd_lightning.utils.errors import check_not_negative, check_positive, require

if TYPE_CHECKING:
    from rtdmd_lightning.modules.training import FewStepModule


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW's numbers, and the gradient norm that is clipped to.

    Args:
        decay_steps: over the run's last so many generator updates the learning rate falls linearly to zero; 0 keeps it constant.
    """

    learning_rate: float = 3e-5
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    decay_steps: int = 0

    def __post_init__(self) -> None:
        where = "model.generator_optimizer or model.fake_optimizer: "
        check_not_negative(
            where,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=self.eps,
            decay_steps=self.decay_steps,
        )
        check_positive(where, max_grad_norm=self.max_grad_norm)
        require(all(0 <= beta < 1 for beta in self.betas), f"{where}betas must lie in [0, 1), not {list(self.betas)}")

    def learning_rate_at(self, step: int, max_steps: int) -> float:
        """The rate of generator update `step` of `max_steps` (counted from 0)."""
        if not self.decay_steps or max_steps < 0:  # Lightning's max_steps -1: a run without an end has no last steps
            return self.learning_rate
        return self.learning_rate * min(1.0, (max_steps - step) / self.decay_steps)


@dataclass(frozen=True)
class EMASettings:
    """The generator's average, `ema <- decay·ema + (1 - decay)·generator` (METHOD sections 3.4 and 4, item 6).

    Args:
        decay: of one move.
        moves: how many moves a training step offers: all but the last before the generator's update, the last one after it. By
            default as the authors count: one per fake-score update in stage 1, one per micro-batch in stage 2.
        every: the average moves only while the number of generator updates done, plus one, is a multiple of this.
        warm_up: after n generator updates the decay is at most `(1 + n)/(10 + n)`.
    """

    decay: float = 0.99
    moves: int | None = None
    every: int = 1
    warm_up: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"model.ema.decay must lie in [0, 1), not {self.decay}")
        require(self.moves is None or self.moves >= 1, f"model.ema.moves must be at least 1, not {self.moves}")
        require(self.every >= 1, f"model.ema.every must be at least 1, not {self.every}")

    def kept(self, moves: int, updates: int) -> float:
        """The share of the old average that is left after some moves, when `updates` generator updates are done."""
        if (updates + 1) % self.every:
            return 1.0
        decay = min(self.decay, (1 + updates) / (10 + updates)) if self.warm_up else self.decay
        return decay**moves


class RoleOptimizers:
    """One AdamW for each role that is trained; they take turns on the same base.

    Args:
        module: whose roles they train; Lightning wraps the first one's steps and counts them.
        settings: by role.
    """

    def __init__(self, module: "FewStepModule", settings: Mapping[str, OptimizerSettings]) -> None:
        self.module, self.settings = module, dict(settings)
        self._losses: dict[str, Tensor] = {}  # of the gradients that wait for a step, the sum by role

    def make(self) -> list[torch.optim.Optimizer]:
        """In one kernel for all parameters where they lie on an accelerator."""
        fused = self.module.device.type != "cpu"
        return [
            torch.optim.AdamW(
                self.module.roles.parameters_of(role),
                lr=settings.learning_rate,
                betas=settings.betas,
                weight_decay=settings.weight_decay,
                eps=settings.eps,
                fused=fused,
            )
            for role, settings in self.settings.items()
        ]

    def backward(self, role: str, loss: Tensor) -> None:
        """Back-propagate in the role that made the loss, see `Roles.role`.

        Outside of the precision plugin's autocast: an operation's gradient has the precision of its forward pass (what is
        computed again by gradient checkpointing has its own autocast restored), and a float32 reward's stays float32.
        """
        self._losses[role] = self._losses.get(role, 0) + loss.detach()
        with self.module.roles.role(role), torch.autocast(loss.device.type, enabled=False):
            self.module.manual_backward(loss)

    def accumulate(self, role: str, losses: Sequence[Callable[[], Tensor]], scale: float) -> Tensor:
        """Back-propagate `scale` times each loss as it is computed; gradients are synchronised once, with the last."""
        total = torch.zeros((), device=self.module.device)
        for number, loss_of in enumerate(losses, start=1):
            with nullcontext() if number == len(losses) else self.without_gradient_sync():
                loss = scale * loss_of()
                self.backward(role, loss)
                total += loss.detach()
        return total

    def without_gradient_sync(self) -> AbstractContextManager:
        """Backward passes in the body add up on each rank; the next one outside brings the sum of all of them together."""
        if self.module.is_sharded:
            return gradient_sync_paused(self.module.roles.bases)
        strategy = self.module.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def step(self, role: str, *, counts: bool = True) -> Tensor:
        """Clip and step one role's optimizer on the gradients that it has; returns their norm before clipping.

        A generator's step that `counts` moves `trainer.global_step` on: one of each training step must.
        """
        settings, parameters = self.settings[role], self.module.roles.parameters_of(role)
        norm = gradient_norm(parameters)
        loss = self._losses.pop(role, torch.zeros_like(norm))  # an epoch may have had nothing to learn from
        self.check_finite(role, loss, norm)
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.max_grad_norm, norm)
        # Lightning counts the steps of the optimizers it wraps: the generator's alone.
        optimizers = self.module.optimizers(use_pl_optimizer=role == GENERATOR and counts)
        of_roles = optimizers if isinstance(optimizers, list) else [optimizers]
        optimizer = of_roles[list(self.settings).index(role)]
        rate = settings.learning_rate_at(self.module.global_step, self.module.trainer.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.module.log(f"learning_rate/{role}", on_host(rate))
        optimizer.step()
        optimizer.zero_grad()
        return norm

    def check_finite(self, role: str, loss: Tensor, norm: Tensor) -> None:
        """Raises FloatingPointError unless loss and gradient norm both are finite: a finite loss may have a gradient that is not.

        The one moment of an update at which the host waits for the device.
        """
        if torch.isfinite(torch.stack([loss, norm.to(loss)])).all():
            return
        what, value = (f"the {role} loss", loss) if not loss.isfinite() else (f"the norm of the {role} gradient", norm)
        raise FloatingPointError(f"{what} is {value.item()} at step {self.module.global_step}; nothing was updated")


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Of all that have a gradient; where it is sharded, over all ranks."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
