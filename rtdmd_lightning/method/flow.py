"""Flow matching on the linear path, its schedules, and moving a sample up to a higher noise level.

`x_σ = (1-σ)·x0 + σ·ε` with `ε ~ N(0, I)`; the network predicts the velocity `v = ε - x0` (METHOD section 0). Samples are
`[B, ...]`; a level is a number or `[B]`, in [0, 1]. Arithmetic is float32, or float64 where the input is.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SIGMA_TS_SQUARED_MIN = 1e-12


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half precisions (and integers) to float32; float32 and float64 as they are (METHOD section 0)."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def broadcast_sigma(sigma: Tensor | float, like: Tensor) -> Tensor:
    """A number or `[B]` as a tensor that broadcasts against `like` `[B, ...]`, at least float32 (METHOD section 0).

    Returns a 0-d tensor, or `[B, 1, ..., 1]` of the dimensions of `like`. A number stays on the CPU, whatever device `like` is
    on: torch hands a 0-d CPU tensor to a kernel by value, and nothing is copied. Raises ValueError for any other shape: `[1]`
    would broadcast silently over samples, `[N]` for packed `[B, N, C]` latents over tokens.
    """
    dtype = at_least_float32(like.new_empty(0)).dtype
    levels = sigma.to(like.device, dtype) if isinstance(sigma, Tensor) else torch.tensor(sigma, dtype=dtype)
    if levels.ndim == 0:
        return levels
    if levels.shape != like.shape[:1]:
        raise ValueError(f"a level per sample is wanted: got shape {tuple(levels.shape)} for {len(like)} samples")
    return levels.view(-1, *[1] * (like.ndim - 1))


def evenly_spaced(count: int, *, start: float = 1.0) -> list[float]:
    """`start · (count - k) / count` for k = 0 to count - 1: from `start` down, exclusive of 0 (METHOD section 1's raw steps)."""
    return [start * (count - step) / count for step in range(count)]


def shift_sigmas(steps: Sequence[float], *, shift: float, num_train_timesteps: int = 1000) -> list[float]:
    """`σ' = s·σ / (1 + (s-1)·σ)` with `σ = step / num_train_timesteps` (METHOD section 1, SD3 family).

    `steps` in [0, num_train_timesteps], σ in [0, 1]; ValueError otherwise, and for a shift that is not positive.
    A schedule that went through here is shifted: handed to a diffusers scheduler, it must not be shifted again.
    """
    if shift <= 0:
        raise ValueError(f"a schedule is shifted by a positive factor, not by {shift}")
    if not all(0 <= step <= num_train_timesteps for step in steps):
        raise ValueError(f"the steps of a schedule lie between 0 and {num_train_timesteps}: got {list(steps)}")
    raw = [step / num_train_timesteps for step in steps]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in raw]


def dynamic_shift_sigmas(steps: Sequence[float], *, mu: float, num_train_timesteps: int = 1000) -> list[float]:
    """`σ' = e^μ / (e^μ + 1/σ - 1)` (METHOD section 1, FLUX.1 and FLUX.2): the static shift by `e^μ`, its range and errors."""
    return shift_sigmas(steps, shift=math.exp(mu), num_train_timesteps=num_train_timesteps)


def flux_mu(
    image_seq_len: int,
    *,
    base_seq_len: int = 256,
    max_seq_len: int = 4096,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
) -> float:
    """FLUX.1's μ: linear in the number of packed image tokens, through the two given points (METHOD section 1)."""
    slope = (max_shift - base_shift) / (max_seq_len - base_seq_len)
    return base_shift + slope * (image_seq_len - base_seq_len)


def flux2_mu(image_seq_len: int, num_steps: int) -> float:
    """FLUX.2's empirical μ (METHOD section 1; the constants are those of diffusers, and a test compares the two).

    Two lines in the number of packed image tokens, fitted at 10 and at 200 steps; between and beyond them μ is linear in the
    number of steps. Above 4300 tokens it is the 200-step line whatever the steps.
    """
    at_10_steps = 8.73809524e-05 * image_seq_len + 1.89833333
    at_200_steps = 0.00016927 * image_seq_len + 0.45666666
    if image_seq_len > 4300:
        return at_200_steps
    return at_200_steps + (at_200_steps - at_10_steps) / 190 * (num_steps - 200)


def interpolate(clean: Tensor, noise: Tensor, *, sigma: Tensor | float) -> Tensor:
    """`x_σ = (1-σ)·x0 + σ·ε` (METHOD section 0)."""
    level = broadcast_sigma(sigma, clean)
    return (1 - level) * at_least_float32(clean) + level * at_least_float32(noise)


def clean_from_velocity(sample: Tensor, velocity: Tensor, *, sigma: Tensor | float) -> Tensor:
    """`x̂0 = x_σ - σ·v` (METHOD section 0); for the fake score this is `h` of section 3.2."""
    return at_least_float32(sample) - broadcast_sigma(sigma, sample) * at_least_float32(velocity)


def noise_from_velocity(sample: Tensor, velocity: Tensor, *, sigma: Tensor | float) -> Tensor:
    """`ε̂ = x_σ + (1-σ)·v` (METHOD section 0)."""
    return at_least_float32(sample) + (1 - broadcast_sigma(sigma, sample)) * at_least_float32(velocity)


def guided_velocity(conditional: Tensor, unconditional: Tensor, *, guidance_scale: float) -> Tensor:
    """Classifier-free guidance: `v_∅ + w·(v_c - v_∅)` (METHOD section 0)."""
    base = at_least_float32(unconditional)
    return base + guidance_scale * (at_least_float32(conditional) - base)


def renoise_scale(*, sigma_start: Tensor | float, sigma_end: Tensor | float) -> tuple[Tensor, Tensor]:
    """`a = (1-t)/(1-s)` and `σ_ts = sqrt(max(t² - a²s², 1e-12))`, for s → t with s < 1 and s <= t (METHOD section 3.1).

    Levels of any two shapes that broadcast; both results have the broadcast shape, 0-d for two numbers.
    """
    # A number becomes a 0-d float64: exact, and it leaves the precision of a `[B]` level beside it alone.
    start, end = (
        at_least_float32(level) if isinstance(level, Tensor) else torch.tensor(level, dtype=torch.float64)
        for level in (sigma_start, sigma_end)
    )
    scale = (1 - end) / (1 - start)
    variance = end**2 - scale**2 * start**2
    return scale, variance.clamp_min(SIGMA_TS_SQUARED_MIN).sqrt()


def renoise(x_start: Tensor, *, sigma_start: Tensor | float, sigma_end: Tensor | float, noise: Tensor) -> Tensor:
    """`x_t = a·x_s + σ_ts·z`: the forward process from level s < 1 up to t >= s (METHOD section 3.1)."""
    start, end = broadcast_sigma(sigma_start, x_start), broadcast_sigma(sigma_end, x_start)
    scale, std = renoise_scale(sigma_start=start, sigma_end=end)
    return scale * at_least_float32(x_start) + std * at_least_float32(noise)
