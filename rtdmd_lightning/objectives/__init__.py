"""The method as pure functions of tensors: no Lightning, no configuration, no device."""

from rtdmd_lightning.objectives.ac_dmd import (
    ambient_velocity_target,
    consistency_loss,
    consistency_target_level,
    fake_score_loss,
    fake_score_weight,
    rao_blackwell_velocity_target,
    renoise_level,
)
from rtdmd_lightning.objectives.cps import (
    cps_kl,
    cps_log_prob,
    cps_mean_std,
    cps_step,
    fresh_noise_share,
    posterior_step,
)
from rtdmd_lightning.objectives.dmd import (
    distribution_matching_loss,
    noise_free_pair,
)
from rtdmd_lightning.objectives.flow import (
    at_least_float32,
    broadcast_sigma,
    clean_from_velocity,
    dynamic_shift_sigmas,
    flux2_mu,
    flux_mu,
    guided_velocity,
    interpolate,
    noise_from_velocity,
    renoise,
    renoise_scale,
    shift_sigmas,
)
from rtdmd_lightning.objectives.policy import (
    clipped_policy_loss,
    group_advantages,
    leave_one_out_advantages,
    normalized_group_rewards,
    reward_hinge_loss,
)

__all__ = [
    "ambient_velocity_target",
    "at_least_float32",
    "broadcast_sigma",
    "clean_from_velocity",
    "clipped_policy_loss",
    "consistency_loss",
    "consistency_target_level",
    "cps_kl",
    "cps_log_prob",
    "cps_mean_std",
    "cps_step",
    "distribution_matching_loss",
    "dynamic_shift_sigmas",
    "fake_score_loss",
    "fake_score_weight",
    "flux2_mu",
    "flux_mu",
    "fresh_noise_share",
    "group_advantages",
    "guided_velocity",
    "interpolate",
    "leave_one_out_advantages",
    "noise_free_pair",
    "noise_from_velocity",
    "normalized_group_rewards",
    "posterior_step",
    "rao_blackwell_velocity_target",
    "renoise",
    "renoise_level",
    "renoise_scale",
    "reward_hinge_loss",
    "shift_sigmas",
]
