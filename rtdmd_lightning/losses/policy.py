"""The policy gradient on one stochastic step (METHOD section 4, items 3 and 5)."""

import torch
from torch import Tensor

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.losses.settings import PolicySettings
from rtdmd_lightning.losses.terms import Term, Terms
from rtdmd_lightning.objectives import clipped_policy_loss, step_kl
from rtdmd_lightning.roles.roles import COLD_START, GENERATOR, Roles
from rtdmd_lightning.sampling.sampler import Sampler
from rtdmd_lightning.sampling.structures import Conditioning
from rtdmd_lightning.utils.transfer import send


class PolicyLoss:
    """`policy`, the clipped objective, and `kl` to the generator that stage 2 starts from, where it has a weight.

    `ratios` is what the last call saw: how far each sample's probability ratio is from 1, `[B]`; `rollout_ratios` how far the one
    to the rollout's own log-probability is.

    Where the settings take the old log-probabilities `from_update`, they are those of the first call on a rollout: its weights
    are still the rollout's, its kernels and batches those of the update. The ratio is 1 then, and later calls move away from it.
    """

    needs = (GENERATOR,)

    def __init__(self, roles: Roles, sampler: Sampler, settings: PolicySettings, is_compiled: bool = False) -> None:
        self.roles, self.sampler, self.settings = roles, sampler, settings
        self.from_update = settings.from_update(is_compiled)
        self.ratios: Tensor
        self.rollout_ratios: Tensor

    def log_prob(self, number: int, state: Tensor, velocity: Tensor, next_state: Tensor) -> Tensor:
        """Of step `number`, `[B]`, in the form that the policy loss compares."""
        return self.sampler.log_prob(number, state, velocity, next_state, exact=self.settings.exact_log_prob)

    def __call__(self, rollout: Rollout, number: int, conditioning: Conditioning) -> Terms:
        """Of step `number` of a micro-batch; samples without an advantage add nothing."""
        settings, device = self.settings, conditioning.embeds.device
        state, next_state = rollout.states_on(device, number, number + 1)
        advantages, of_rollout = send([rollout.advantages, rollout.log_probs[number]], device)
        velocity = self.roles.velocity(GENERATOR, state, self.sampler.sigmas[number], conditioning)
        log_prob = self.log_prob(number, state, velocity, next_state)
        old_log_prob = of_rollout
        if self.from_update:
            old_log_prob = rollout.update_log_probs.setdefault(number, log_prob.detach())
        loss = clipped_policy_loss(
            log_prob,
            old_log_prob,
            advantages,
            clip_range=settings.clip_range,
            adv_clip_max=settings.advantage_clip,
        )
        self.ratios, self.rollout_ratios = (
            (log_prob.detach() - old).expm1().abs() for old in (old_log_prob, of_rollout)
        )
        terms = {"policy": Term(loss, settings.weight)}
        if settings.kl_weight:
            kl = self.kl(number, state, velocity, conditioning)
            terms["kl"] = Term((kl * (advantages != 0)).mean(), settings.kl_weight)
        return terms

    def kl(self, number: int, state: Tensor, velocity: Tensor, conditioning: Conditioning) -> Tensor:
        """`[B]`: how far the step's mean is from the cold start's."""
        with torch.no_grad():
            reference = self.roles.velocity(COLD_START, state, self.sampler.sigmas[number], conditioning)
        reference_mean, std = self.sampler.step_mean_std(number, state, reference)
        mean, _ = self.sampler.step_mean_std(number, state, velocity)
        return step_kl(mean, reference_mean, std=std, exact=self.settings.exact_log_prob)
