"""Distribution matching: the generator's pull from its own distribution towards the teacher's (METHOD section 3.3)."""

import torch
from torch import Tensor

from rtdmd_lightning.method.flow import at_least_float32, broadcast_sigma


def distribution_matching_loss(
    x: Tensor,
    fake: Tensor,
    teacher: Tensor,
    *,
    normalize: bool = True,
    normalizer: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """`g = (x^F - x^T) / mean_per_sample|x - x^T|` (nan → 0), `L_G = 0.5·mse(x, stopgrad(x - g))` (METHOD section 3.3).

    `x` carries the gradient; `fake` and `teacher` are where the two velocity fields bring its renoised version back to. The
    gradient of the loss with respect to `x` is g over the number of elements. `normalizer` gives another pair whose mean
    absolute difference divides g (`noise_free_pair`); `normalize=False` does not divide. All tensors are `[B, ...]`.
    An infinite g (a normaliser of exactly 0 under a difference that is not) becomes the largest number, as `nan_to_num` does.

    Raises ValueError for a normalizer that `normalize=False` would ignore.
    """
    if normalizer is not None and not normalize:
        raise ValueError(
            "a normalizer was given together with normalize=False, which would ignore it: drop one of them"
        )
    assert x.shape == fake.shape == teacher.shape, (x.shape, fake.shape, teacher.shape)
    x = at_least_float32(x)
    with torch.no_grad():
        fake, teacher = at_least_float32(fake), at_least_float32(teacher)
        gradient = fake - teacher
        if normalize:
            one, other = (x, teacher) if normalizer is None else normalizer
            distance = (at_least_float32(one) - at_least_float32(other)).abs().flatten(1).mean(dim=1)
            gradient = gradient / broadcast_sigma(distance, gradient)
        target = x - torch.nan_to_num(gradient)
    return 0.5 * torch.nn.functional.mse_loss(x, target)


def noise_free_pair(clean_generator: Tensor, clean_teacher: Tensor, *, sigma: Tensor | float) -> tuple[Tensor, Tensor]:
    """`((1-s)·x̂0^G, (1-s)·x̂0^T)`: a normaliser without the independent noises of x_s and x_s^T (METHOD section 3.3, *ours*).

    At s = 0 it is the paper's pair.
    """
    keep = 1 - broadcast_sigma(sigma, clean_generator)
    return keep * at_least_float32(clean_generator), keep * at_least_float32(clean_teacher)
