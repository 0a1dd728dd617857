"""DiffusionNFT (arXiv 2509.16117) on the few-step generator: reinforcement on the forward process, without likelihoods.

An old policy, a slow copy of the generator, draws clean samples. Each is noised to a level of the schedule, and two implicit
policies around the old one are fitted to it: the positive one as far as the sample was good, the negative one as far as it
was bad (equations 6 and 7 of the paper):

    v+ = (1-β)·v_old + β·v_θ        v- = (1+β)·v_old - β·v_θ
    L  = r·|x̂0(v+) - x0|² / w+  +  (1-r)·|x̂0(v-) - x0|² / w-        w = mean|x̂0 - x0| of the sample, no gradient

`r` in [0, 1] is the advantage, clipped to ±c and moved there. One training step is one epoch and one optimizer step.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import PolicySettings, Term, Terms, total
from rtdmd_lightning.models.base import Backbone
from rtdmd_lightning.modules.cold_start import FROM_BASE, check_groups, cold_start_files
from rtdmd_lightning.modules.explorer import Explorer
from rtdmd_lightning.modules.memory import MemorySettings, Offload
from rtdmd_lightning.modules.notes import Notes
from rtdmd_lightning.modules.optimization import EMASettings, OptimizerSettings
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.objectives import broadcast_sigma, clean_from_velocity, interpolate
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.compiling import Compile
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import COLD_START, EMA, GENERATOR, Stacks
from rtdmd_lightning.sampling.sampler import SamplerSettings
from rtdmd_lightning.utils.errors import require
from rtdmd_lightning.utils.transfer import send

OLD = "old_policy"


class DiffusionNFTModule(FewStepModule):
    """DiffusionNFT.

    Args:
        backbone: which model family, from where.
        batch_size: samples of one micro-batch, over all processes.
        rewards: what to reinforce, with their weights.
        cold_start: the few-step generator to start from: stage 1's folder, or the generator's file.
        images_per_prompt: the size of a group whose rewards are compared.
        micro_batches: batches of `batch_size` samples in an epoch.
        beta: how far the implicit policies lie from the old one.
        advantage_clip: c, at which an advantage is as good, or as bad, as any.
        old_decay_rate, old_decay_max: after n epochs the old policy keeps `min(rate·n, max)` of itself; 0 keeps it on policy.
        global_std: divide a reward by its std over the epoch; without it, over the prompt group.
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
        images_per_prompt: int = 24,
        micro_batches: int = 16,
        beta: float = 1.0,
        advantage_clip: float = 5.0,
        old_decay_rate: float = 0.001,
        old_decay_max: float = 0.5,
        global_std: bool = True,
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
        require(beta > 0, f"model.beta must be above 0, not {beta}")
        require(0 <= old_decay_max < 1, f"model.old_decay_max must lie in [0, 1), not {old_decay_max}")
        require(old_decay_rate >= 0, f"model.old_decay_rate must be at least 0, not {old_decay_rate}")
        optimizers = {GENERATOR: generator_optimizer}
        memory = MemorySettings(micro_batch_size, tuple(offload or ()))
        super().__init__(
            backbone, batch_size, memory, optimizers, sampler, lora, initial_adapter, ema, 1, seed, compile
        )
        self.rewards, self.cold_start = rewards, cold_start
        self.images_per_prompt, self.micro_batches, self.beta = images_per_prompt, micro_batches, beta
        self.old_decay_rate, self.old_decay_max = old_decay_rate, old_decay_max
        self.policy = PolicySettings(shared_noise=False, advantage_clip=advantage_clip, global_std=global_std)
        self.notes = Notes()

    @property
    def batches_per_step(self) -> int:
        return self.micro_batches

    def frozen_adapters(self) -> dict[str, str]:
        generator, _ = cold_start_files(self.cold_start, FROM_BASE)
        return {COLD_START: generator}

    def stacks(self) -> Stacks:
        return {role: (COLD_START, role) for role in (GENERATOR, EMA, OLD)}

    def build_losses(self) -> None:
        self.explore = Explorer(self, self.rewards, self.policy, self.sampler.log_prob, role=OLD)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.explore.load_rewards()

    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        rollouts, rewards = self.explore(batch, self.global_step, chosen=())
        self.log_dict({f"reward/{name}": values.mean() for name, values in rewards.items()})
        with self.timed("generator_update"):
            self.update_generator(rollouts)
        self.roles.move_average(min(self.old_decay_rate * self.global_step, self.old_decay_max), OLD)
        self.move_average(self.ema_moves)
        self.log_dict(self.notes.summary(self.gather))

    def update_generator(self, rollouts: Sequence[Rollout]) -> None:
        """One optimizer step on the mean over the epoch's samples and all levels of the schedule."""
        steps = range(self.sampler.steps)
        losses = [partial(self.loss_of, rollout, step) for rollout in rollouts for step in steps]
        loss = self.optimize.accumulate(GENERATOR, losses, 1 / len(losses))
        self.log_dict({"generator/loss": loss, "generator/grad_norm": self.optimize.step(GENERATOR)})

    def loss_of(self, rollout: Rollout, step: int) -> Tensor:
        """At the level where a step begins, of a micro-batch, the mean over its samples."""
        batch, sigma = rollout.batch, self.sampler.sigmas[step]
        conditioning = self.embed(batch.prompts, self.device)
        clean = rollout.states_on(self.device, -1)[0]
        noise = self.random_of(batch).normal(f"forward noise {step}", clean.shape[1:])
        noised = interpolate(clean, noise, sigma=sigma)
        velocity = self.roles.velocity(GENERATOR, noised, sigma, conditioning)
        with torch.no_grad():
            old = self.roles.velocity(OLD, noised, sigma, conditioning)
        goodness = (send([rollout.advantages], self.device)[0] / (2 * self.policy.advantage_clip) + 0.5).clamp(0, 1)
        terms = nft_terms(clean, noised, velocity, old, goodness, sigma=sigma, beta=self.beta)
        self.notes.terms(GENERATOR, terms, len(rollout), f"step_{step}")
        return self.policy.advantage_clip / self.beta * total(terms)


def nft_terms(
    clean: Tensor, noised: Tensor, velocity: Tensor, old: Tensor, goodness: Tensor, *, sigma: float, beta: float
) -> Terms:
    """`positive` and `negative`, as at the head of this file; `goodness` is r, `[B]`, the rest `[B, ...]`."""
    positive = (1 - beta) * old + beta * velocity
    negative = (1 + beta) * old - beta * velocity
    shares = {"positive": (positive, goodness), "negative": (negative, 1 - goodness)}
    terms = {}
    for name, (implicit, share) in shares.items():
        error = clean_from_velocity(noised, implicit, sigma=sigma) - clean
        scale = error.detach().abs().flatten(1).mean(dim=1).clamp_min(1e-5)
        distance = (error**2 / broadcast_sigma(scale, error)).flatten(1).mean(dim=1)
        terms[name] = Term((share * distance).mean())
    return terms
