"""Stage 2, RTDMD: the few-step generator is made better than its teacher (METHOD section 4).

One training step is one epoch: rollouts of `micro_batches` batches by the current generator, their rewards and advantages, one
fake-score update over all of them, one generator update over all of them. The cold start lies frozen under fresh adapters of
generator and fake score. The generator's loss has three parts:

* SubGRPO on the chosen stochastic steps, which needs no gradient of a reward;
* at the last, deterministic step, where a policy gradient is blind: back-propagation of the differentiable rewards;
* there too, AC-DMD's pull towards the teacher, which keeps the images images.

Forward passes, in samples of the transformer (N in an epoch, K sampler steps, T trained stochastic steps): rollouts K*N; the
fake score N, and 2N for the two-sample consistency; the generator (T+1)*N with gradient, at the last step 2N for the teacher
with CFG and N for the fake score, T*N for the KL term. A weight of 0 saves its passes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout, shuffled
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import (
    Consistency,
    FakeScoreLoss,
    FinalStepLoss,
    FinalStepSettings,
    MatchingSettings,
    PolicyLoss,
    PolicySettings,
    RenoiseSettings,
    Terms,
    total,
)  # fmt: skip
from rtdmd_lightning.models.base import DTYPES, Backbone
from rtdmd_lightning.models.placement import VAE
from rtdmd_lightning.modules.cold_start import COLD_STARTS, FROM_BASE, check_reinforcement
from rtdmd_lightning.modules.explorer import Explorer, Listener
from rtdmd_lightning.modules.memory import MemorySettings, Offload
from rtdmd_lightning.modules.notes import Notes, on_host
from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings
from rtdmd_lightning.modules.ratio import FirstRatio
from rtdmd_lightning.modules.trainable import Trainable
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.compiling import Compile
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import COLD_START, COLD_START_FAKE, EMA, FAKE_SCORE, GENERATOR, TEACHER, Stacks
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.randomness import keyed_generator


class RTDMDModule(FewStepModule):
    """RTDMD. Every ablation is one option. Without AC-DMD's term there is no fake score, and none of its files is read.

    Args:
        backbone: which model family, from where.
        batch_size: samples of one micro-batch, over all processes.
        guidance_scale: the teacher's range; one value per generator update.
        rewards: what to reinforce, with their weights.
        cold_start: the result of stage 1: its folder (`cold_start.py` says which files are read), or the generator's file alone.
        cold_start_fake: the fake score's file where it is not in that folder; `base` starts it from the teacher.
        images_per_prompt: K, the size of a group whose rewards are compared.
        micro_batches: batches of `batch_size` samples in an epoch.
        policy: SubGRPO.
        final_step: reward back-propagation and AC-DMD at the last step.
        trajectory_dtype: how states are stored between rollout and update; they are rounded as they are made, so nothing is lost.
        shuffle: train on micro-batches that mix the samples of all rollout batches, as the authors do. Rounding may then move the
            first ratio by more than the clip range: `policy.ratio_check` tells, and `policy.old_log_prob: update` prevents it.
        sub_interval, consistency, fake_target, fake_weight, renoise, normalizer: AC-DMD's, see `MatchingSettings`.
        sampler, lora: the student's few-step sampler; the shape of the fresh adapters.
        initial_adapter: a file or folder that the generator's fresh adapter starts from, of `lora`'s rank and alpha.
        generator_optimizer, fake_optimizer: one AdamW each.
        ema: how the generator's average follows it; by default one move per micro-batch (METHOD section 4, item 6).
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
        rewards: RewardMixture,
        cold_start: str,
        cold_start_fake: str | None = None,
        images_per_prompt: int = 24,
        micro_batches: int = 16,
        policy: PolicySettings = PolicySettings(),
        final_step: FinalStepSettings = FinalStepSettings(),
        trajectory_dtype: Literal["float32", "bfloat16"] = "float32",
        shuffle: bool = False,
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
        check_reinforcement(policy, final_step, sampler, rewards, images_per_prompt, micro_batches)
        needs_fake = final_step.matching_weight > 0
        optimizers = {GENERATOR: generator_optimizer} | ({FAKE_SCORE: fake_optimizer} if needs_fake else {})
        memory = MemorySettings(micro_batch_size, tuple(offload or ()))
        super().__init__(
            backbone, batch_size, memory, optimizers, sampler, lora, initial_adapter, ema, micro_batches, seed, compile,
            trainable=trainable,
        )  # fmt: skip
        self.rewards, self.policy, self.final_step = rewards, policy, final_step
        self.cold_start, self.cold_start_fake = cold_start, cold_start_fake
        self.images_per_prompt, self.micro_batches, self.shuffle = images_per_prompt, micro_batches, shuffle
        self.trajectory_dtype = DTYPES[trajectory_dtype]
        self.matching = MatchingSettings(
            guidance_scale, sub_interval, consistency, fake_target, fake_weight, renoise, normalizer
        )
        self.notes, self.check_ratio = Notes(), FirstRatio(policy)
        self.listeners: list[Listener] = []

    @property
    def batches_per_step(self) -> int:
        return self.micro_batches

    def frozen_adapters(self) -> dict[str, str]:
        given = self.cold_start_fake if FAKE_SCORE in self.optimize.settings else FROM_BASE
        generator, fake_score = COLD_STARTS[self.trainable](self.cold_start, given)
        return {COLD_START: generator} | ({COLD_START_FAKE: fake_score} if fake_score else {})

    def stacks(self) -> Stacks:
        stacks: dict[str, tuple[str, ...]] = {GENERATOR: (COLD_START, GENERATOR), EMA: (COLD_START, EMA)}
        if self.trainable == "lora" or self.policy.kl_weight:  # of a whole transformer it would be one more
            stacks[COLD_START] = (COLD_START,)
        if FAKE_SCORE not in self.optimize.settings:
            return stacks
        beneath = (COLD_START_FAKE,) if COLD_START_FAKE in self.frozen_adapters() else ()
        return stacks | {FAKE_SCORE: (*beneath, FAKE_SCORE), TEACHER: ()}

    def build_losses(self) -> None:
        self.policy_loss = PolicyLoss(self.roles, self.sampler, self.policy, self.is_compiled)
        self.explore = Explorer(self, self.rewards, self.policy, self.policy_loss.log_prob, self.trajectory_dtype)
        self.final_step_loss = FinalStepLoss(
            self.roles, self.sampler, self.final_step, self.matching, self.rewards, self.embed
        )
        if FAKE_SCORE in self.optimize.settings:
            self.fake_score_loss = FakeScoreLoss(self.roles, self.sampler, self.matching)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.explore.load_rewards()

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        epoch = self.global_step
        chosen = self.policy.choose(self.seed, epoch, self.sampler.steps)
        with self.explore.scoring() as scoring:
            rollouts = self.explore.roll_out(batch, epoch, chosen, scoring)
            if self.shuffle:
                rollouts = shuffled(rollouts, keyed_generator(self.seed, epoch, f"shuffle {self.global_rank}"))
            if not self.listeners:
                self.update_fake_score(rollouts)  # needs no reward: the last images are scored meanwhile
            rollouts, rewards = self.explore.with_advantages(rollouts, scoring)
        self.log_dict({f"reward/{name}": values.mean() for name, values in rewards.items()})
        for hear in self.listeners:
            hear(rollouts, epoch, chosen)
        if self.listeners:
            self.update_fake_score(rollouts)
        self.move_average(self.ema_moves - 1)
        with self.timed("generator_update"), self.backbone.at_work(VAE), self.rewards.at_work():
            self.update_generator(rollouts, epoch, chosen)
        self.move_average(1)
        self.log_dict(self.notes.summary(self.gather))

    def update_fake_score(self, rollouts: Sequence[Rollout]) -> None:
        """One optimizer step, where there is a fake score, on its loss at the last step (s = 0), the mean over the epoch."""
        if FAKE_SCORE not in self.optimize.settings:
            return
        with self.timed("fake_update"):
            losses = [partial(self.fake_loss, rollout) for rollout in rollouts]
            loss = self.optimize.accumulate(FAKE_SCORE, losses, 1 / len(rollouts))
            self.log_dict({"fake_score/loss": loss, "fake_score/grad_norm": self.optimize.step(FAKE_SCORE)})

    def fake_loss(self, rollout: Rollout) -> Tensor:
        """Of one micro-batch, the mean."""
        batch = rollout.batch
        conditioning = self.embed(batch.prompts, self.device)
        step = rollout.last_step(self.sampler, self.device)
        terms = self.fake_score_loss(step, conditioning, self.random_of(batch), "fake update")
        self.notes.terms(FAKE_SCORE, terms, len(rollout))
        return total(terms)

    def update_generator(self, rollouts: Sequence[Rollout], epoch: int, chosen: Sequence[int]) -> None:
        """One optimizer step on the mean of all terms over the epoch's kept samples and its trained steps."""
        kept = [self.kept_rows(rollout) for rollout in rollouts]
        counts = self.gather(torch.tensor([len(rows) for rows in kept]))
        kept_everywhere = counts.view(-1, len(rollouts)).sum(dim=0).tolist()
        total_kept = sum(kept_everywhere)
        self.log("policy/kept_samples", on_host(total_kept))
        everything = zip(rollouts, kept, kept_everywhere, strict=True)
        remaining = [(rollout, rows) for rollout, rows, count in everything if count]
        losses: list[Callable[[], Tensor]] = [
            partial(self.stochastic_loss, rollout, step) for rollout, _ in remaining for step in chosen
        ]
        if self.final_step.is_trained:
            guidance_scale = self.matching.draw_guidance(self.seed, epoch)
            losses += [partial(self.final_loss, rollout, rows, guidance_scale) for rollout, rows in remaining]
        scale = self.trainer.world_size / (max(total_kept, 1) * (len(chosen) + self.final_step.is_trained))
        loss = self.optimize.accumulate(GENERATOR, losses, scale)
        self.check_ratio(self.notes, self.gather)
        self.log_dict({"generator/loss": loss, "generator/grad_norm": self.optimize.step(GENERATOR)})

    def kept_rows(self, rollout: Rollout) -> list[int]:
        """The samples that have an advantage; all of them where back-propagation alone, which needs none, is trained."""
        return rollout.advantages.nonzero().flatten().tolist() if self.policy.weight else list(range(len(rollout)))

    def stochastic_loss(self, rollout: Rollout, step: int) -> Tensor:
        """The policy's terms at one stochastic step, the sum over the micro-batch."""
        terms = self.policy_loss(rollout, step, self.embed(rollout.batch.prompts, self.device))
        self.notes.terms(GENERATOR, terms, len(rollout), f"step_{step}")
        self.notes.ratios(self.policy_loss)
        return len(rollout) * total(terms)

    def final_loss(self, rollout: Rollout, rows: list[int], guidance_scale: float) -> Tensor:
        """All that is trained at the last step, the sum over some rows of the micro-batch."""
        terms = self.final_terms(rollout, rows, guidance_scale)
        self.notes.terms(GENERATOR, terms, len(rows))
        return len(rows) * total(terms)

    def final_terms(self, rollout: Rollout, rows: list[int], guidance_scale: float) -> Terms:
        """Those that have a weight, means over some rows. A process without any computes along: FSDP2 needs every rank."""
        part = rollout.at(rows or [0])
        terms = self.final_step_loss(
            part.states_on(self.device, -2)[0], part.batch, self.random_of(part.batch), guidance_scale
        )
        for name, scores in self.final_step_loss.scores.items():
            self.notes.mean(f"reward_backprop/{name}", scores[: len(rows)])
        return terms
