"""The model problem's closed form, against simulation with the real sampler and against differences."""

import pytest
import torch
from torch.testing import assert_close

from rtdmd_lightning.studies.hybrid_gradient import roll_out
from rtdmd_lightning.studies.linear_gaussian import LinearGaussian

PROBLEMS = [
    LinearGaussian(),
    LinearGaussian(eta=0.3, curvature=0.0),
    LinearGaussian(step_scales=(30.0, 1.0, 0.1, 0.03), curvature=2.5),
]
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=["default", "linear", "uneven"])


def thetas(problem: LinearGaussian, *, scale: float, seed: int = 0) -> torch.Tensor:
    """A θ for each step."""
    shape = (len(problem.steps), *problem.theta.shape)
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every_problem
@pytest.mark.parametrize("share_noise", [False, True], ids=["own noise", "shared noise"])
def test_the_expected_reward_is_the_simulated_mean(problem, share_noise):
    """With shared noise too: it correlates the samples of a group and leaves the law of each alone."""
    generator = torch.Generator().manual_seed(1)
    updates = 10_000
    selected = torch.tensor([[True, False, True]]).expand(updates, -1)
    trajectory, prompts = roll_out(problem, selected, 2, share_noise, generator)
    of_update = problem.reward(trajectory.samples, prompts).view(updates, -1).mean(dim=1)
    expected = problem.expected_reward(problem.theta.expand(len(problem.steps), -1, -1)).item()
    error = (of_update.std() / updates**0.5).item()
    assert error < 0.05
    assert of_update.mean().item() == pytest.approx(expected, abs=3 * error)


@every_problem
def test_the_step_gradients_are_central_differences(problem):
    direction, step = thetas(problem, scale=1.0), 1e-5
    difference = problem.expected_reward(step * direction) - problem.expected_reward(-step * direction)
    along = (problem.step_gradients() * direction.flatten(1)).sum()
    assert_close(along, difference / (2 * step), rtol=1e-7, atol=0)


@every_problem
def test_the_gradient_of_the_shared_parameters_is_the_sum_over_the_steps(problem):
    theta = problem.theta.requires_grad_()
    (gradient,) = torch.autograd.grad(problem.expected_reward(theta.expand(4, -1, -1)), theta)
    assert_close(problem.gradient(), gradient.flatten())


def test_step_scales_scale_the_gradients_and_leave_the_samples_alone():
    flat, uneven = LinearGaussian(), LinearGaussian(step_scales=(30.0, 1.0, 0.1, 0.03))
    scales = torch.tensor(uneven.step_scales, dtype=torch.float64)
    assert_close(uneven.step_gradients(), scales[:, None] * flat.step_gradients())
    zeros = torch.zeros(4, *flat.theta.shape, dtype=torch.float64)
    assert uneven.expected_reward(zeros) == flat.expected_reward(zeros)
