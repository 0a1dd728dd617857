"""Flow-GRPO (arXiv 2505.05470) on the few-step generator: a policy gradient on all stochastic steps, and nothing else.

A baseline beside RTDMD: no teacher, no fake score, no gradient of a reward. One training step is one epoch: rollouts of
`micro_batches` batches, their rewards and advantages, then `inner_updates` optimizer steps on them. From the second on the
probability ratio leaves 1, which is what its clip is for. `trainer.global_step` counts epochs.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import PolicyLoss, PolicySettings, total
from rtdmd_lightning.losses.settings import OldLogProb, RatioCheck
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.cold_start import FROM_BASE, check_groups, cold_start_files
from rtdmd_lightning.modules.explorer import Explorer
from rtdmd_lightning.modules.memory import MemorySettings, Offload
from rtdmd_lightning.modules.notes import Notes
from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings
from rtdmd_lightning.modules.ratio import FirstRatio
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.compiling import Compile
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import COLD_START, EMA, GENERATOR, Stacks
from rtdmd_lightning.sampling.sampler import SamplerName, SamplerSettings
from rtdmd_lightning.utils.errors import require


class FlowGRPOModule(FewStepModule):
    """Flow-GRPO.

    Args:
        backbone: which model family, from where.
        batch_size: samples of one micro-batch, over all processes.
        rewards: what to reinforce, with their weights.
        cold_start: the few-step generator to start from: stage 1's folder, or the generator's file.
        sampler_name: `cps`, which the few-step generator was trained with, or `sde`, Flow-GRPO's own, whose last step is
            stochastic too.
        images_per_prompt: the size of a group whose rewards are compared.
        micro_batches: batches of `batch_size` samples in an epoch.
        inner_updates: optimizer steps on the rollouts of an epoch.
        clip_range: of the probability ratio, on the scale of `step_log_prob`.
        advantage_clip: advantages beyond are cut.
        global_std: divide a reward by its std over the epoch; without it, over the prompt group.
        kl_weight: pull of each step towards the generator that it starts from; 0 saves its passes.
        old_log_prob, ratio_check: see `PolicySettings`.
        sampler: the few-step sampler's steps and stochasticity.
        lora: shape of the fresh adapter.
        initial_adapter: what the fresh adapter starts from, of `lora`'s rank and alpha.
        generator_optimizer: AdamW.
        ema: how the generator's average follows it; by default one move per epoch.
        micro_batch_size: samples of one forward pass on one process, null: all that it has of a batch. Gradients add up: the
            update is the same, its activations are smaller.
        offload: which of text_encoders, vae, rewards and base lie in CPU memory while they are not used; null: none.
        seed: of all noise and of every random choice (linked from `seed_everything`).
        compile: `blocks` compiles the transformer's blocks (the first steps take minutes); null compiles nothing.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        rewards: RewardMixture,
        cold_start: str,
        sampler_name: SamplerName = "cps",
        images_per_prompt: int = 24,
        micro_batches: int = 16,
        inner_updates: int = 2,
        clip_range: float = 1e-5,
        advantage_clip: float = 5.0,
        global_std: bool = True,
        kl_weight: float = 0.0,
        old_log_prob: OldLogProb = "auto",
        ratio_check: RatioCheck = "stop",
        sampler: SamplerSettings = SamplerSettings(),
        lora: LoraSettings = LoraSettings(),
        initial_adapter: str | None = None,
        generator_optimizer: OptimizerSettings = OptimizerSettings(),
        ema: EMASettings = EMASettings(),
        micro_batch_size: int | None = None,
        offload: list[Offload] | None = None,
        seed: int = 0,
        compile: Compile | None = None,
    ) -> None:
        check_groups(images_per_prompt, micro_batches)
        require(inner_updates >= 1, f"model.inner_updates must be at least 1, not {inner_updates}")
        require(sampler.eta > 0, "with model.sampler.eta 0 no step is stochastic, and Flow-GRPO has nothing to train")
        optimizers = {GENERATOR: generator_optimizer}
        memory = MemorySettings(micro_batch_size, tuple(offload or ()))
        super().__init__(
            backbone,
            batch_size,
            memory,
            optimizers,
            sampler,
            lora,
            initial_adapter,
            ema,
            1,
            seed,
            compile,
            sampler_name,
        )
        self.rewards, self.cold_start = rewards, cold_start
        self.images_per_prompt, self.micro_batches, self.inner_updates = images_per_prompt, micro_batches, inner_updates
        self.policy = PolicySettings(
            shared_noise=False,
            clip_range=clip_range,
            advantage_clip=advantage_clip,
            global_std=global_std,
            kl_weight=kl_weight,
            old_log_prob=old_log_prob,
            ratio_check=ratio_check,
        )
        self.notes, self.check_ratio = Notes(), FirstRatio(self.policy)

    @property
    def batches_per_step(self) -> int:
        return self.micro_batches

    def frozen_adapters(self) -> dict[str, str]:
        generator, _ = cold_start_files(self.cold_start, FROM_BASE)
        return {COLD_START: generator}

    def stacks(self) -> Stacks:
        return {GENERATOR: (COLD_START, GENERATOR), EMA: (COLD_START, EMA), COLD_START: (COLD_START,)}

    def build_losses(self) -> None:
        self.policy_loss = PolicyLoss(self.roles, self.sampler, self.policy, self.is_compiled)
        self.explore = Explorer(self, self.rewards, self.policy, self.policy_loss.log_prob)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.explore.load_rewards()

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        rollouts, rewards = self.explore(batch, self.global_step, self.trained_steps)
        self.log_dict({f"reward/{name}": values.mean() for name, values in rewards.items()})
        for number in range(self.inner_updates):
            with self.timed("generator_update"):
                self.update_generator(rollouts, counts=number == self.inner_updates - 1)
        self.move_average(self.ema_moves)
        self.log_dict(self.notes.summary(self.gather))

    @property
    def trained_steps(self) -> Sequence[int]:
        """All that are stochastic: CPS's last one is not."""
        return range(self.sampler.steps - (self.sampler_name == "cps"))

    def update_generator(self, rollouts: Sequence[Rollout], *, counts: bool) -> None:
        """One optimizer step on the mean over the epoch's samples and all trained steps."""
        steps = self.trained_steps
        losses = [partial(self.loss_of, rollout, step) for rollout in rollouts for step in steps]
        loss = self.optimize.accumulate(GENERATOR, losses, 1 / len(losses))
        self.check_ratio(self.notes, self.gather)
        norm = self.optimize.step(GENERATOR, counts=counts)
        self.log_dict({"generator/loss": loss, "generator/grad_norm": norm})

    def loss_of(self, rollout: Rollout, step: int) -> Tensor:
        """Of one step of a micro-batch, the mean over its samples."""
        terms = self.policy_loss(rollout, step, self.embed(rollout.batch.prompts, self.device))
        self.notes.terms(GENERATOR, terms, len(rollout), f"step_{step}")
        self.notes.ratios(self.policy_loss)
        return total(terms)
