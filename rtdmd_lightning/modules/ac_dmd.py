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
from typing import Literal

import torch

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import (
    Consistency,
    FakeScoreLoss,
    MatchingLoss,
    MatchingSettings,
    RenoiseSettings,
    Terms,
    total,
)
from rtdmd_lightning.models.base import DTYPES, Backbone
from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.objectives import renoise_level
from rtdmd_lightning.roles.compiling import Compile
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER, Stacks
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.sampling.structures import Conditioning, ExecutedStep, Trajectory
from rtdmd_lightning.utils.errors import UserError, require
from rtdmd_lightning.utils.processes import synchronize
from rtdmd_lightning.utils.randomness import SampleRandom, keyed_generator


@dataclass(frozen=True)
class Update:
    """Which batch of a cycle's samples an update uses, and after how many executed steps (1 to K) its rollout stops."""

    batch: int
    stop: int


class ACDMDModule(FewStepModule):
    """AC-DMD. Every ablation is one option.

    Args:
        backbone: which model family, from where.
        batch_size: samples of one optimizer step, over all processes.
        guidance_scale: the teacher's range; one value per generator update.
        fake_update_ratio: fake-score updates per generator update (TTUR).
        random_stop: stop the rollout after a random number of steps; without it, always after the last.
        reuse_rollouts: one batch of whole trajectories per cycle instead of one random-stop rollout per update.
        trajectory_dtype: of the states of a rollout; they are rounded as they are made.
        sub_interval: renoise from the level where the rollout stopped; without it, from the clean prediction. Off together
            with the consistency regulariser, this is a form of DMD2 (configs/README.md).
        consistency: the fake score's regulariser.
        fake_target: `ambient` (the paper's) or `rao_blackwell` (same conditional mean, smaller variance).
        fake_weight: of the fake score's loss: `clamped` (the paper's), or `unit` (DMD2's).
        renoise: how the levels that samples are renoised to are drawn.
        normalizer: of the generator's gradient: `paper`, or `noise_free` (only the clean predictions enter).
        sampler: the student's few-step sampler.
        lora: shape of the adapters.
        initial_adapter: what the generator starts from instead of the base: a file or folder in any format that `roles.read`
            knows, of `lora`'s rank and alpha.
        generator_optimizer, fake_optimizer: one AdamW each.
        ema: how the generator's average follows it; by default one move per fake-score update (METHOD section 3.4).
        seed: of all noise and of every random choice (linked from `seed_everything`).
        compile: `blocks` compiles the transformer's blocks (the first steps take minutes); null compiles nothing.
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
        sub_interval: bool = True,
        consistency: Consistency = Consistency(),
        fake_target: Literal["ambient", "rao_blackwell"] = "ambient",
        fake_weight: Literal["clamped", "unit"] = "clamped",
        renoise: RenoiseSettings = RenoiseSettings(),
        normalizer: Literal["paper", "noise_free"] = "paper",
        sampler: SamplerSettings = SamplerSettings(),
        lora: LoraSettings = LoraSettings(),
        initial_adapter: str | None = None,
        generator_optimizer: OptimizerSettings = OptimizerSettings(),
        fake_optimizer: OptimizerSettings = OptimizerSettings(),
        ema: EMASettings = EMASettings(),
        seed: int = 0,
        compile: Compile | None = None,
    ) -> None:
        optimizers = {GENERATOR: generator_optimizer, FAKE_SCORE: fake_optimizer}
        super().__init__(
            backbone, batch_size, optimizers, sampler, lora, initial_adapter, ema, fake_update_ratio, seed, compile
        )
        require(fake_update_ratio >= 1, f"model.fake_update_ratio must be at least 1, not {fake_update_ratio}")
        self.fake_update_ratio, self.random_stop, self.reuse_rollouts = fake_update_ratio, random_stop, reuse_rollouts
        self.trajectory_dtype = DTYPES[trajectory_dtype]
        self.matching = MatchingSettings(
            guidance_scale, sub_interval, consistency, fake_target, fake_weight, renoise, normalizer
        )

    def check(self) -> None:
        """Also refuses a schedule from one of whose levels there is nowhere to renoise to."""
        super().check()
        if not (self.matching.sub_interval and self.random_stop):
            return  # only the last level, 0, is renoised from
        steps = self.sampler_settings.steps
        try:
            renoise_level(torch.zeros(1), sigma_start=self.backbone.sigmas(steps)[1])
        except ValueError as error:
            raise UserError(f"model.sampler.steps {steps}: {error}") from error

    def stacks(self) -> Stacks:
        return {GENERATOR: (GENERATOR,), FAKE_SCORE: (FAKE_SCORE,), TEACHER: (), EMA: (EMA,)}

    def build_losses(self) -> None:
        self.fake_score_loss = FakeScoreLoss(self.roles, self.sampler, self.matching)
        self.matching_loss = MatchingLoss(self.roles, self.sampler, self.matching, self.embed)

    # The cycle ----------------------------------------------------------------------------------------------------------

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        cycle = self.global_step
        fake_updates, generator_update = self.draw_updates(cycle)
        random, conditioning = self.random_of(batch), self.embed(batch.prompts, self.device)
        local = len(batch.prompts) // self.batches_per_step
        rows = [slice(start, start + local) for start in range(0, len(batch.prompts), local)]

        shared: Trajectory | None = None
        if self.shares_trajectories:
            with self.timed("rollout"):
                shared = self.roll_out_to(self.sampler.steps, conditioning, random)
                synchronize(self.device)

        with self.timed("fake_updates"):
            for number, update in enumerate(fake_updates):
                own = rows[update.batch]
                trajectory = shared[own] if shared else self.roll_out_to(update.stop, conditioning[own], random[own])
                reached = trajectory.step(update.stop - 1)
                terms = self.fake_score_loss(reached, conditioning[own], random[own], f"fake update {number}")
                self.update_on(FAKE_SCORE, terms, update.stop)
        self.move_average(self.ema_moves - 1)

        with self.timed("generator_update"):
            own, stop = rows[generator_update.batch], generator_update.stop
            noise = random[own] if shared else random[own].for_use("generator")
            before = shared[own] if shared else self.roll_out_to(stop - 1, conditioning[own], noise)
            reached = self.last_step(before, stop, conditioning[own], noise)
            guidance_scale = self.matching.draw_guidance(self.seed, cycle)
            terms = self.matching_loss(reached, conditioning[own], noise, guidance_scale)
            self.update_on(GENERATOR, terms, stop)
        self.move_average(1)

    def update_on(self, role: str, terms: Terms, stop: int) -> None:
        """One optimizer step. Losses and gradients differ by orders of magnitude between segments: each has its own curves."""
        loss = total(terms)
        norm = self.optimize.update(role, loss)
        self.log_terms(role, terms, f"segment_{stop}")
        self.log_dict({f"{role}/loss_segment_{stop}": loss.detach(), f"{role}/grad_norm_segment_{stop}": norm})

    def roll_out_to(self, steps: int, conditioning: Conditioning, random: SampleRandom) -> Trajectory:
        """The generator's first steps, without gradient."""
        return self.roll_out(GENERATOR, conditioning, random, steps=steps, state_dtype=self.trajectory_dtype)

    def last_step(
        self, trajectory: Trajectory, stop: int, conditioning: Conditioning, random: SampleRandom
    ) -> ExecutedStep:
        """The last executed step of a rollout once more, now with gradient."""
        number, sigma, sigma_next = stop - 1, self.sampler.sigmas[stop - 1], self.sampler.sigmas[stop]
        state = trajectory.states[number]
        velocity = self.roles.velocity(GENERATOR, state, sigma, conditioning)
        noise = random.normal(f"step {number}", state.shape[1:])
        reached = self.sampler.step(state, velocity, sigma=sigma, sigma_next=sigma_next, noise=noise)
        return ExecutedStep(sigma, sigma_next, state, velocity, noise, reached)

    # Which updates ----------------------------------------------------------------------------------------------------------

    @property
    def shares_trajectories(self) -> bool:
        """Are whole trajectories rolled out once per cycle? Without a random stop only their last boundary would serve."""
        return self.reuse_rollouts and self.random_stop

    @property
    def batches_per_step(self) -> int:
        """With reuse, K fake-score updates share a batch; else each has its own. The generator's update takes one of them."""
        if self.shares_trajectories:
            return math.ceil(self.fake_update_ratio / len(self.sampler_settings.steps))
        return self.fake_update_ratio

    def draw_updates(self, cycle: int) -> tuple[list[Update], Update]:
        """The fake-score updates of a cycle and its generator update: a function of (seed, cycle), so the same on all ranks."""
        generator = keyed_generator(self.seed, cycle, "plan")
        stops, batches, ratio = len(self.sampler_settings.steps), self.batches_per_step, self.fake_update_ratio

        def draw(bound: int) -> int:
            return int(torch.randint(bound, (), generator=generator))

        if self.shares_trajectories:
            order = torch.randperm(batches * stops, generator=generator).tolist()[:ratio]
            fake_updates = [Update(index // stops, index % stops + 1) for index in order]
            return fake_updates, Update(draw(batches), draw(stops) + 1)
        # As the authors have it, the generator's update takes the prompts of the last one before it, with noise of its own.
        in_turn = [*range(batches), batches - 1]
        updates = [Update(batch, draw(stops) + 1 if self.random_stop else stops) for batch in in_turn]
        return updates[:ratio], updates[ratio]
