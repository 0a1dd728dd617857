"""AC-DMD: what the fake score learns from generated samples (METHOD sections 3.1 and 3.2)."""

import torch
from torch import Tensor

from rtdmd_lightning.method.flow import at_least_float32, broadcast_sigma, renoise_scale

FAKE_WEIGHT_MAX = 10.0


def renoise_level(
    uniform: Tensor,
    *,
    sigma_start: float,
    low: float = 10,
    clamp: tuple[float, float] = (20, 980),
    num_train_timesteps: int = 1000,
) -> Tensor:
    """`t·1000 ~ U[1000·s + 10, 1000]`, clamped to [20, 980] (METHOD section 3.1), from uniform draws `[B]` in [0, 1].

    Returns levels t `[B]` in (0, 1), above s. `low` and `clamp` are timesteps. Raises ValueError for a start at or above the
    upper clamp, from which there is nowhere to renoise to.
    """
    if not 0 <= num_train_timesteps * sigma_start < clamp[1]:
        raise ValueError(
            f"renoising goes up to the level {clamp[1] / num_train_timesteps}, so it cannot start at {sigma_start}: "
            "choose a schedule whose levels after the first are lower"
        )
    lowest = num_train_timesteps * sigma_start + low
    timestep = lowest + (num_train_timesteps - lowest) * at_least_float32(uniform)
    return timestep.clamp(*clamp) / num_train_timesteps


def logit_normal(normal: Tensor) -> Tensor:
    """`u = sigmoid(n)`: standard normal draws `[B]` to logit-normal ones in (0, 1) (METHOD section 5.1, DMD2)."""
    return torch.sigmoid(at_least_float32(normal))


def table_level(uniform: Tensor, *, shift: float, clamp: tuple[int, int] = (0, 999), length: int = 1000) -> Tensor:
    """Levels t `[B]` in (0, 1] of a scheduler's training table, from draws `[B]` in [0, 1) (METHOD section 5.1, DMD2).

    The table holds `length` levels `(i + 1)/length`, i from 0, shifted by `σ' = s·σ / (1 + (s-1)·σ)`; a draw u picks
    `i = floor(length·u)`, clamped. A shift of 1 leaves the table as it is.
    """
    index = torch.floor(length * at_least_float32(uniform)).clamp(*clamp)
    raw = (index + 1) / length
    return shift * raw / (1 + (shift - 1) * raw)


def ambient_velocity_target(
    x_start: Tensor, *, sigma_start: Tensor | float, sigma_end: Tensor | float, noise: Tensor
) -> Tensor:
    """`u = -x_s/(1-s) + (t + (1-t)·s²/(1-s)²)/σ_ts · z` (METHOD section 3.2).

    It is `d x_t/dt` at fixed `(x_s, z)`; its conditional mean given x_t is the velocity of the generator's marginal at t.
    `x_start` and `noise` `[B, ...]`, levels 0 <= s < 1 and s < t: the slope in front of z grows without bound as t → s.
    """
    start, end = broadcast_sigma(sigma_start, x_start), broadcast_sigma(sigma_end, x_start)
    _, std = renoise_scale(sigma_start=start, sigma_end=end)
    slope = (end + (1 - end) * start**2 / (1 - start) ** 2) / std
    return -at_least_float32(x_start) / (1 - start) + slope * at_least_float32(noise)


def rao_blackwell_velocity_target(
    x_end: Tensor,
    *,
    sigma_start: Tensor | float,
    sigma_end: Tensor | float,
    step_std: Tensor | float,
    step_noise: Tensor,
    noise: Tensor,
) -> Tensor:
    """`u_RB = -x_t/(1-t) + t/(1-t) · n/w`, `w² = (a·std)² + σ_ts²`, `n = (a·std·z_c + σ_ts·z)/w` (METHOD section 3.2, *ours*).

    `step_std = s·sin(ηπ/2)` and `step_noise = z_c` made x_s in a CPS step. Given that step's mean, all noise in x_t is the one
    Gaussian n: same conditional mean as the ambient target, smaller variance. At s = 0 it is plain flow matching, ε - x0.
    """
    start, end = broadcast_sigma(sigma_start, x_end), broadcast_sigma(sigma_end, x_end)
    scale, std = renoise_scale(sigma_start=start, sigma_end=end)
    from_step = scale * step_std
    width_squared = from_step**2 + std**2
    noise_over_width = (from_step * at_least_float32(step_noise) + std * at_least_float32(noise)) / width_squared
    return (end * noise_over_width - at_least_float32(x_end)) / (1 - end)


def fake_score_weight(*, sigma_start: Tensor | float, sigma_end: Tensor | float) -> Tensor:
    """`clamp(1/σ_ts², 0, 10)`, of the levels' broadcast shape (METHOD section 3.2)."""
    _, std = renoise_scale(sigma_start=sigma_start, sigma_end=sigma_end)
    return (1 / std**2).clamp(0, FAKE_WEIGHT_MAX)


def fake_score_loss(
    velocity: Tensor, velocity_target: Tensor, *, sigma_start: Tensor | float, sigma_end: Tensor | float
) -> Tensor:
    """`L_ambient = mean( clamp(1/σ_ts², 0, 10) · (σ_ts·F - σ_ts·u)² )` (METHOD section 3.2); a scalar.

    The mean is over all elements of `[B, ...]`; the gradient reaches the velocity (and the target, if it carries one).
    """
    start, end = broadcast_sigma(sigma_start, velocity), broadcast_sigma(sigma_end, velocity)
    _, std = renoise_scale(sigma_start=start, sigma_end=end)
    weight = fake_score_weight(sigma_start=start, sigma_end=end)
    scaled_error = std * (at_least_float32(velocity) - at_least_float32(velocity_target))
    return (weight * scaled_error**2).mean()


def flow_matching_loss(velocity: Tensor, velocity_target: Tensor) -> Tensor:
    """`mean((F - u)²)`: the fake score's loss with weight 1, as DMD2 has it (METHOD sections 3.2 and 5.1); a scalar."""
    return torch.nn.functional.mse_loss(at_least_float32(velocity), at_least_float32(velocity_target))


def consistency_target_level(delta: Tensor, *, sigma: Tensor, num_train_timesteps: int = 1000) -> Tensor:
    """`t' = max(1000·t - Δ, 0)/1000`, per sample: Δ (timesteps) and t (a level) are `[B]` (METHOD section 3.2)."""
    return (num_train_timesteps * at_least_float32(sigma) - delta).clamp_min(0) / num_train_timesteps


def consistency_loss(clean: Tensor, clean_1: Tensor, clean_2: Tensor) -> Tensor:
    """`L_cons = mean((h(x'_1) - h(x_t)) · (h(x'_2) - h(x_t)))` (METHOD section 3.2); a scalar.

    All three `[B, ...]` are clean predictions `h = x - t·F(x, t)` (`clean_from_velocity`), and all three carry gradient. From
    two independent transitions the loss is unbiased and may be negative. The one-sample form, a mean squared error, is the
    same transition given twice: `consistency_loss(clean, clean_1, clean_1)`.
    """
    clean = at_least_float32(clean)
    return torch.mean((at_least_float32(clean_1) - clean) * (at_least_float32(clean_2) - clean))
