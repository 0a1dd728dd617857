"""Stage 2, RTDMD: the few-step generator is made better than its teacher (METHOD section 4).

One training step is one epoch: rollouts of `micro_batches` batches by the current generator, their rewards and advantages, one
fake-score update over all of them, one generator update over all of them. The cold start lies frozen under fresh adapters of
generator and fake score. The generator's loss has three parts:

* SubGRPO on the chosen stochastic steps, which needs no gradient of a reward;
* at the last, deterministic step, where a policy gradient is blind: back-propagation of the differentiable rewards;
* there too, AC-DMD's pull towards the teacher, which keeps the images images.

There is one generator forward per (micro-batch, trained step), shared by all terms of that step. In samples of the transformer,
N of them in an epoch, K sampler steps, T trained stochastic steps:

* rollouts: K*N;
* the fake score: as AC-DMD's update, N and 2N for the two-sample consistency;
* the generator: (T+1)*N with gradient; at the last step 2N for the teacher with CFG and N for the fake score; T*N for the KL term
  where it has a weight. Weights of 0 save their passes, and so do micro-batches without a sample that has an advantage.

The rollout and the update see the same micro-batches in the same numerics, so that the probability ratio starts at 1: the clip
range of 1e-5 is narrower than what another batch shape changes in half precision.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout, Scores, collect, shared_noise, shuffled, with_advantages
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.cold_start import cold_start_files
from rtdmd_lightning.modules.reinforcement import COLD_START, ReinforcementModule
from rtdmd_lightning.modules.roles import EMA, FAKE_SCORE, GENERATOR, TEACHER
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.randomness import keyed_generator

COLD_START_FAKE = "cold_start_fake_score"


class RTDMDModule(ReinforcementModule):
    """RTDMD. Every ablation is one option.

    Args:
        cold_start: the result of stage 1: its folder, with the files of generator and fake score (`cold_start_files` says which),
            or the generator's file alone.
        cold_start_fake: the fake score's file where it is not in that folder; `base` starts it from the teacher.
        images_per_prompt: K, the size of a group whose rewards are compared.
        micro_batches: batches of `batch_size` samples in an epoch.
        trajectory_dtype: how states are stored between rollout and update; they are rounded as they are made, so nothing is lost.
        shuffle: train on micro-batches that mix the samples of all rollout batches, as the authors do. Without it they stay
            together, so that the update computes what the rollout computed and the probability ratio starts at exactly 1.
        backbone, batch_size, guidance_scale, rewards, shared: see `ReinforcementModule` and those it is made from.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        guidance_scale: tuple[float, float],
        rewards: RewardMixture,
        cold_start: str,
        cold_start_fake: str | None = None,
        images_per_prompt: int = 24,
        micro_batches: int = 16,
        trajectory_dtype: Literal["float32", "bfloat16"] = "float32",
        shuffle: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(backbone, batch_size, guidance_scale, rewards, **shared)
        require(
            images_per_prompt >= 2,
            f"model.images_per_prompt must be at least 2, not {images_per_prompt}: a group is compared",
        )
        require(micro_batches >= 1, f"model.micro_batches must be at least 1, not {micro_batches}")
        self.cold_start, self.cold_start_fake = cold_start, cold_start_fake
        self.group_size, self.micro_batches = images_per_prompt, micro_batches
        self.shuffle = shuffle
        self.trajectory_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[trajectory_dtype]

    @property
    def groups_per_step(self) -> int:
        return self.micro_batches

    @property
    def images_per_prompt(self) -> int:
        return self.group_size

    def frozen_adapters(self) -> dict[str, str]:
        generator, fake_score = cold_start_files(self.cold_start, self.cold_start_fake)
        return {COLD_START: generator} | ({COLD_START_FAKE: fake_score} if fake_score else {})

    def adapter_stacks(self) -> dict[str, tuple[str, ...]]:
        beneath = (COLD_START_FAKE,) if COLD_START_FAKE in self.frozen_adapters() else ()
        return {
            GENERATOR: (COLD_START, GENERATOR),
            EMA: (COLD_START, EMA),
            COLD_START: (COLD_START,),
            FAKE_SCORE: (*beneath, FAKE_SCORE),
            TEACHER: (),
        }

    # The epoch --------------------------------------------------------------------------------------------------------

    def chosen_steps(self, epoch: int) -> list[int]:
        """The stochastic steps that are trained: a function of (seed, epoch), so the same on all ranks."""
        if not self.policy.weight:
            return []
        order = torch.randperm(len(self.candidates), generator=keyed_generator(self.seed, epoch, "steps"))
        return sorted(self.candidates[number] for number in order[: self.policy.trained_steps].tolist())

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        epoch = self.global_step
        chosen = self.chosen_steps(epoch)
        local = len(batch.prompts) // self.micro_batches
        batches = [batch[start : start + local] for start in range(0, len(batch.prompts), local)]
        with self.timed("rollout"):
            rollouts = collect(batches, lambda part: self.sample(part, epoch, chosen), self.score)
        rollouts, rewards = with_advantages(
            rollouts,
            self.rewards.weights,
            images_per_prompt=self.group_size,
            global_std=self.policy.global_std,
            gather=self.gather,
        )
        self.log_dict({f"reward/{name}": values.mean() for name, values in rewards.items()})
        if self.shuffle:
            rollouts = shuffled(rollouts, keyed_generator(self.seed, epoch, f"shuffle {self.global_rank}"))
        if self.final_step.matching_weight:
            with self.timed("fake_update"):
                self.update_fake_score(rollouts)
        self.update_ema(self.ema_moves - 1)
        with self.timed("generator_update"):
            self.update_generator(rollouts, epoch, chosen)
        self.update_ema(1)

    @property
    def ema_moves(self) -> int:
        """Moves of the average in an epoch: one per micro-batch, all but one before the optimizer's step (METHOD section 4)."""
        return self.ema.moves or self.micro_batches

    def gather(self, values: Tensor) -> Tensor:
        """`[N]` of every process as `[processes * N]`."""
        gathered = self.all_gather(values.to(self.device))
        assert isinstance(gathered, Tensor)
        return gathered.flatten()

    # Rollouts ---------------------------------------------------------------------------------------------------------

    def sample(
        self, batch: PromptBatch, epoch: int, chosen: Sequence[int]
    ) -> tuple[tuple[Tensor, ...], dict[int, Tensor], Tensor]:
        """States and log-probabilities by step (on the CPU) of one micro-batch, and its images."""
        random, shape = self.random_of(batch), self.backbone.latent_shape()

        def step_noise(step: int) -> Tensor:
            if step in chosen or not self.policy.shared_noise:
                return random.normal(f"step {step}", shape)
            return shared_noise(batch.prompts, shape, seed=self.seed, epoch=epoch, step=step).to(self.device)

        trajectory = self.roll_out(
            GENERATOR,
            self.embed(batch.prompts, self.device),
            random,
            step_noise=step_noise,
            state_dtype=self.trajectory_dtype,
        )
        log_probs = {
            step: self.log_prob(
                step, trajectory.states[step], trajectory.velocities[step], trajectory.states[step + 1]
            ).cpu()
            for step in chosen
        }
        states = tuple(state.to("cpu", self.trajectory_dtype) for state in trajectory.states)
        return states, log_probs, self.images(trajectory.samples)

    def score(self, images: Tensor, batch: PromptBatch) -> Scores:
        return self.rewards.score(images, batch.prompts, batch.metadata)

    # The fake score ---------------------------------------------------------------------------------------------------

    def update_fake_score(self, rollouts: Sequence[Rollout]) -> None:
        """One optimizer step on `L_fake` at the last step (s = 0), the mean over all samples of the epoch."""

        def loss_of(rollout: Rollout) -> Tensor:
            batch = rollout.batch
            conditioning = self.embed(batch.prompts, self.device)
            return self.fake_matching_loss(self.last_step(rollout), conditioning, self.random_of(batch), "fake update")

        total = self.accumulate(FAKE_SCORE, [partial(loss_of, rollout) for rollout in rollouts], 1 / len(rollouts))
        self.log_dict({"fake_score/loss": total, "fake_score/grad_norm": self.step_optimizer(FAKE_SCORE)})

    # The generator ----------------------------------------------------------------------------------------------------

    def update_generator(self, rollouts: Sequence[Rollout], epoch: int, chosen: Sequence[int]) -> None:
        """One optimizer step on the mean of all terms over the epoch's kept samples and its trained steps."""
        kept = [self.kept_rows(rollout) for rollout in rollouts]
        counts = torch.tensor([len(rows) for rows in kept])
        kept_everywhere = self.gather(counts).view(-1, len(rollouts)).sum(dim=0).tolist()
        total_kept = sum(kept_everywhere)
        self.log("policy/kept_samples", float(total_kept))
        remaining = [
            (rollout, rows) for rollout, rows, count in zip(rollouts, kept, kept_everywhere, strict=True) if count
        ]
        losses: list[Callable[[], Tensor]] = [
            partial(self.policy_loss, rollout, step) for rollout, _ in remaining for step in chosen
        ]
        if self.final_step.is_trained:
            guidance_scale = self.draw_guidance(epoch)
            losses += [partial(self.final_step_loss, rollout, rows, guidance_scale) for rollout, rows in remaining]
        scale = self.trainer.world_size / (max(total_kept, 1) * (len(chosen) + self.final_step.is_trained))
        total = self.accumulate(GENERATOR, losses, scale)
        self.log_noted()
        self.log_dict({"generator/loss": total, "generator/grad_norm": self.step_optimizer(GENERATOR)})
