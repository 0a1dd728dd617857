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
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import (
    Consistency,
    FakeScoreLoss,
    MatchingLoss,
    MatchingSettings,
    RenoiseSettings,
)
from rtdmd_lightning.losses.terms import Terms, detached, mean, total
from rtdmd_lightning.models.base import DTYPES, Backbone
from rtdmd_lightning.modules.cycle import Samples, Update, draw_in_turn, draw_shared, split
from rtdmd_lightning.modules.memory import MemorySettings, Offload
from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings
from rtdmd_lightning.modules.trainable import Trainable
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
        initial_adapter: what the generator starts from instead of the base: a file or folder of `lora`'s rank and alpha.
        generator_optimizer, fake_optimizer: one AdamW each.
        ema: how the generator's average follows it; by default one move per fake-score update (METHOD section 3.4).
        micro_batch_size: samples of one forward pass on one process, null: all that it has of a batch. Gradients add up: the
            update is the same, its activations are smaller.
        offload: which of text_encoders, vae, rewards and base lie in CPU memory while they are not used; null: none.
        seed: of all noise and of every random choice (linked from `seed_everything`).
        compile: `blocks` compiles the transformer's blocks (the first steps take minutes); null compiles nothing.
        trainable: `lora`, or `full`: generator and fake score are whole transformers of their own (roles/README.md).
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
        micro_batch_size: int | None = None,
        offload: list[Offload] | None = None,
        seed: int = 0,
        compile: Compile | None = None,
        trainable: Trainable = "lora",
    ) -> None:
        optimizers = {GENERATOR: generator_optimizer, FAKE_SCORE: fake_optimizer}
        memory = MemorySettings(micro_batch_size, tuple(offload or ()))
        super().__init__(
            backbone, batch_size, memory, optimizers, sampler, lora, initial_adapter, ema, fake_update_ratio, seed, compile,
            trainable=trainable,
        )  # fmt: skip
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
        samples = self.samples_of(batch)
        count = len(samples) // self.batches_per_step
        batches = [samples[start : start + count] for start in range(0, len(samples), count)]

        with self.timed("fake_updates"):
            for number, update in enumerate(fake_updates):
                of_part = partial(self.fake_terms, update.stop, number)
                self.update_on(FAKE_SCORE, [partial(of_part, part) for part in batches[update.batch]], update.stop)
        self.move_average(self.ema_moves - 1)

        with self.timed("generator_update"):
            stop = generator_update.stop
            of_part = partial(self.generator_terms, stop, self.matching.draw_guidance(self.seed, cycle))
            self.update_on(GENERATOR, [partial(of_part, part) for part in batches[generator_update.batch]], stop)
        self.move_average(1)

    def samples_of(self, batch: PromptBatch) -> list[Samples]:
        """Those of a cycle, by micro-batch, with their trajectories where these are shared.

        Without micro-batches all are rolled out in one pass and stay on the device; with them they wait on the CPU.
        """
        at_once = self.micro_batch_size or len(batch.prompts)
        place = self.device if self.micro_batch_size is None else torch.device("cpu")
        samples = Samples(self.embed(batch.prompts, place), self.random_of(batch)).split(at_once)
        if self.shares_trajectories:
            with self.timed("rollout"):
                samples = [self.with_trajectory(part, place) for part in samples]
                synchronize(self.device)
        return split(samples, self.micro_batch_size or at_once // self.batches_per_step)

    def with_trajectory(self, samples: Samples, place: torch.device) -> Samples:
        """Rolled out to the end; the trajectory then lies at that place."""
        trajectory = self.roll_out_to(self.sampler.steps, samples.conditioning.to(self.device), samples.random)
        return replace(samples, trajectory=trajectory.to(place))

    def fake_terms(self, stop: int, number: int, samples: Samples) -> Terms:
        """Of fake-score update `number` of a cycle, at the boundary that `stop` steps reach."""
        conditioning, random = samples.conditioning.to(self.device), samples.random
        trajectory = samples.trajectory or self.roll_out_to(stop, conditioning, random)
        reached = trajectory.step(stop - 1).to(self.device)
        return self.fake_score_loss(reached, conditioning, random, f"fake update {number}")

    def generator_terms(self, stop: int, guidance_scale: float, samples: Samples) -> Terms:
        """Of the generator update: the last of `stop` steps with gradient, then the pull towards the teacher."""
        conditioning, random = samples.conditioning.to(self.device), samples.random
        if samples.trajectory is None:
            random = random.for_use("generator")
        before = samples.trajectory or self.roll_out_to(stop - 1, conditioning, random)
        reached = self.last_step(before, stop, conditioning, random)
        return self.matching_loss(reached, conditioning, random, guidance_scale)

    def update_on(self, role: str, terms_of: Sequence[Callable[[], Terms]], stop: int) -> None:
        """One optimizer step on the mean over micro-batches.

        Losses and gradients differ by orders of magnitude between segments: each has its own curves.
        """
        seen: list[Terms] = []

        def loss_of(part: Callable[[], Terms]) -> Tensor:
            terms = part()
            seen.append(detached(terms))
            return total(terms)

        loss = self.optimize.accumulate(role, [partial(loss_of, part) for part in terms_of], 1 / len(terms_of))
        norm = self.optimize.step(role)
        self.log_terms(role, mean(seen), f"segment_{stop}")
        self.log_dict({f"{role}/loss_segment_{stop}": loss, f"{role}/grad_norm_segment_{stop}": norm})

    def roll_out_to(self, steps: int, conditioning: Conditioning, random: SampleRandom) -> Trajectory:
        """The generator's first steps, without gradient."""
        return self.roll_out(GENERATOR, conditioning, random, steps=steps, state_dtype=self.trajectory_dtype)

    def last_step(
        self, trajectory: Trajectory, stop: int, conditioning: Conditioning, random: SampleRandom
    ) -> ExecutedStep:
        """The last executed step of a rollout once more, now with gradient."""
        number, sigma, sigma_next = stop - 1, self.sampler.sigmas[stop - 1], self.sampler.sigmas[stop]
        state = trajectory.states[number].to(self.device)
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
        """The fake-score updates of a cycle and its generator update; see `cycle.py`."""
        generator = keyed_generator(self.seed, cycle, "plan")
        stops, batches, ratio = len(self.sampler_settings.steps), self.batches_per_step, self.fake_update_ratio
        if self.shares_trajectories:
            return draw_shared(generator, stops, batches, ratio)
        return draw_in_turn(generator, stops, batches, ratio, random_stop=self.random_stop)
