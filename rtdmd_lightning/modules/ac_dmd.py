"""Stage 1, AC-DMD: the cold start that turns a many-step teacher with CFG into a few-step generator without (METHOD section 3).

One training step is one cycle: `fake_update_ratio` fake-score updates, then one generator update. Within a cycle the
generator's weights do not change, so with `reuse_rollouts` whole trajectories are rolled out once, in one large batch without
gradient, and each of their four boundaries serves a fake-score update.

Forward passes, in samples of the transformer (B = batch_size, K = sampler steps, R = fake_update_ratio):

* rollouts of a cycle: ceil(R/K)*K*B with `reuse_rollouts`; else k*B per fake update and (k-1)*B for the generator's, where k
  is the random stop;
* a fake-score update: B, and 2B more in one pass for the two-sample consistency (B for the one-sample form; each chained
  move beyond the first costs as much again);
* the generator update: B with gradient, 2B for the teacher with CFG (B at scale 1), B for the fake score.

`tests/modules/test_forward_counts.py` counts them.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.matching import MatchingModule
from rtdmd_lightning.modules.roles import FAKE_SCORE, GENERATOR
from rtdmd_lightning.objectives import cps_step, renoise_level
from rtdmd_lightning.sampling.structures import Conditioning, ExecutedStep, Trajectory
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.randomness import SampleRandom, keyed_generator


@dataclass(frozen=True)
class Update:
    """Which group of a cycle's samples an update uses, and after how many executed steps (1 to K) its rollout stops."""

    group: int
    stop: int


class ACDMDModule(MatchingModule):
    """AC-DMD. Every ablation is one option.

    Args:
        fake_update_ratio: fake-score updates per generator update (TTUR).
        random_stop: stop the rollout after a random number of steps; without it, always after the last.
        reuse_rollouts: one batch of whole trajectories per cycle instead of one random-stop rollout per update.
        trajectory_dtype: of the states of a rollout; they are rounded as they are made.
        backbone, batch_size, guidance_scale, shared: see `MatchingModule` and `DistillationModule` (the command line lists
            their options here too).
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        guidance_scale: tuple[float, float],
        fake_update_ratio: int = 10,
        random_stop: bool = True,
        reuse_rollouts: bool = True,
        trajectory_dtype: Literal["float32", "bfloat16"] = "float32",
        **shared: Any,
    ) -> None:
        super().__init__(backbone, batch_size, guidance_scale, **shared)
        if fake_update_ratio < 1:
            raise UserError(f"model.fake_update_ratio must be at least 1, not {fake_update_ratio}")
        self.fake_update_ratio = fake_update_ratio
        self.random_stop = random_stop
        self.reuse_rollouts = reuse_rollouts
        self.trajectory_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[trajectory_dtype]

    def check(self) -> None:
        """Also refuses a schedule from one of whose levels there is nowhere to renoise to."""
        super().check()
        if not (self.sub_interval and self.random_stop):
            return  # only the last level, 0, is renoised from
        try:
            renoise_level(torch.zeros(1), sigma_start=self.backbone.sigmas(self.sampler.steps)[1])
        except ValueError as error:
            raise UserError(f"model.sampler.steps {self.sampler.steps}: {error}") from error

    # The cycle --------------------------------------------------------------------------------------------------------

    @property
    def shares_trajectories(self) -> bool:
        """Are whole trajectories rolled out once per cycle? Without a random stop only their last boundary would serve."""
        return self.reuse_rollouts and self.random_stop

    @property
    def groups_per_step(self) -> int:
        """With reuse, K fake-score updates share a group; else each has its own. The generator's update takes one of them."""
        if self.shares_trajectories:
            return math.ceil(self.fake_update_ratio / len(self.sampler.steps))
        return self.fake_update_ratio

    def plan(self, cycle: int) -> tuple[list[Update], Update]:
        """The fake-score updates of a cycle and its generator update: a function of (seed, cycle), so the same on all ranks."""
        generator = keyed_generator(self.seed, cycle, "plan")
        stops, groups, ratio = len(self.sampler.steps), self.groups_per_step, self.fake_update_ratio

        def draw(bound: int) -> int:
            return int(torch.randint(bound, (), generator=generator))

        if self.shares_trajectories:
            order = torch.randperm(groups * stops, generator=generator).tolist()[:ratio]
            fake_updates = [Update(index // stops, index % stops + 1) for index in order]
            return fake_updates, Update(draw(groups), draw(stops) + 1)
        # As the authors have it, the generator's update takes the prompts of the last one before it, with noise of its own.
        groups_in_turn = [*range(groups), groups - 1]
        updates = [Update(group, draw(stops) + 1 if self.random_stop else stops) for group in groups_in_turn]
        return updates[:ratio], updates[ratio]

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        cycle = self.global_step
        fake_updates, generator_update = self.plan(cycle)
        random = SampleRandom(self.seed, batch.indices, self.device)
        conditioning = self.embed(batch.prompts, self.device)
        local = len(batch.prompts) // self.groups_per_step
        groups = [slice(start, start + local) for start in range(0, len(batch.prompts), local)]

        shared: Trajectory | None = None
        if self.shares_trajectories:
            with self.timed("rollout"):
                shared = self.roll_out_to(len(self.sampler.steps), conditioning, random)
        with self.timed("fake_updates"):
            for number, update in enumerate(fake_updates):
                group = groups[update.group]
                trajectory = (
                    shared[group] if shared else self.roll_out_to(update.stop, conditioning[group], random[group])
                )
                loss = self.fake_score_loss(trajectory, update.stop, conditioning[group], random[group], number)
                self.log_update(FAKE_SCORE, update.stop, loss, self.update(FAKE_SCORE, loss))
        self.update_ema(self.ema_moves - 1)
        with self.timed("generator_update"):
            group, stop = groups[generator_update.group], generator_update.stop
            own = random[group] if shared else random[group].for_use("generator")
            trajectory = shared[group] if shared else self.roll_out_to(stop - 1, conditioning[group], own)
            loss = self.generator_loss(trajectory, stop, conditioning[group], own, self.draw_guidance(cycle))
            self.log_update(GENERATOR, stop, loss, self.update(GENERATOR, loss))
        self.update_ema(1)

    @property
    def ema_moves(self) -> int:
        """Moves of the average in a cycle: one per fake-score update (METHOD section 3.4)."""
        return self.ema.moves or self.fake_update_ratio

    def roll_out_to(self, steps: int, conditioning: Conditioning, random: SampleRandom) -> Trajectory:
        """The generator's first steps, without gradient."""
        return self.roll_out(GENERATOR, conditioning, random, steps, state_dtype=self.trajectory_dtype)

    def log_update(self, role: str, stop: int, loss: Tensor, norm: Tensor) -> None:
        """Losses and gradient norms differ by orders of magnitude between segments, so each segment has its own curves."""
        self.log_dict({f"{role}/loss_segment_{stop}": loss.detach(), f"{role}/grad_norm_segment_{stop}": norm})

    # The losses -------------------------------------------------------------------------------------------------------

    def fake_score_loss(
        self, trajectory: Trajectory, stop: int, conditioning: Conditioning, random: SampleRandom, number: int
    ) -> Tensor:
        """METHOD section 3.2 at the boundary that `stop` steps reach; `number` tells a cycle's updates apart."""
        return self.fake_matching_loss(trajectory.step(stop - 1), conditioning, random, f"fake update {number}")

    def generator_loss(
        self, trajectory: Trajectory, stop: int, conditioning: Conditioning, random: SampleRandom, guidance_scale: float
    ) -> Tensor:
        """METHOD section 3.3: the last executed step, now with gradient, then the pull towards the teacher."""
        last, sigma, sigma_next = stop - 1, self.sigmas[stop - 1], self.sigmas[stop]
        state = trajectory.states[last]
        velocity = self.velocity(GENERATOR, state, sigma, conditioning)
        noise = random.normal(f"step {last}", state.shape[1:])
        reached = cps_step(state, velocity, sigma=sigma, sigma_next=sigma_next, eta=self.sampler.eta, noise=noise)
        step = ExecutedStep(sigma, sigma_next, state, velocity, noise, reached)
        return self.generator_matching_loss(step, conditioning, random, guidance_scale, "generator update")
