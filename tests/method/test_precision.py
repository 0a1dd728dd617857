"""All arithmetic is float32 or better, whatever the networks run in; and the package is pure tensor maths."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from rtdmd_lightning import method, objectives
from tests.support.gaussian import normal

INTERVAL = {"sigma_start": 0.5, "sigma_end": torch.tensor([0.6, 0.9])}
STEP = {"sigma": torch.tensor([0.9, 0.75]), "sigma_next": 0.5}

# Every function of sample-shaped tensors, as a function of three of them.
FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "interpolate": lambda a, b, c: objectives.interpolate(a, b, sigma=0.3),
    "clean_from_velocity": lambda a, b, c: objectives.clean_from_velocity(a, b, sigma=0.3),
    "noise_from_velocity": lambda a, b, c: objectives.noise_from_velocity(a, b, sigma=0.3),
    "guided_velocity": lambda a, b, c: objectives.guided_velocity(a, b, guidance_scale=4.5),
    "renoise": lambda a, b, c: objectives.renoise(a, noise=b, **INTERVAL),
    "cps_mean_std": lambda a, b, c: objectives.cps_mean_std(a, b, eta=0.9, **STEP)[0],
    "cps_step": lambda a, b, c: objectives.cps_step(a, b, eta=0.9, noise=c, **STEP),
    "cps_log_prob": lambda a, b, c: objectives.cps_log_prob(a, b, c, eta=0.9, **STEP),
    "cps_log_prob exact": lambda a, b, c: objectives.cps_log_prob(a, b, c, eta=0.9, exact=True, **STEP),
    "posterior_step": lambda a, b, c: objectives.posterior_step(a, b, noise=c, **STEP),
    "ambient_velocity_target": lambda a, b, c: objectives.ambient_velocity_target(a, noise=b, **INTERVAL),
    "rao_blackwell_velocity_target": lambda a, b, c: objectives.rao_blackwell_velocity_target(
        a, step_std=0.45, step_noise=b, noise=c, **INTERVAL
    ),
    "fake_score_loss": lambda a, b, c: objectives.fake_score_loss(a, b, **INTERVAL),
    "consistency_loss": objectives.consistency_loss,
    "distribution_matching_loss": objectives.distribution_matching_loss,
    "normalizer": lambda a, b, c: objectives.distribution_matching_loss(a, b, c, normalizer=(b, c)),
    "noise_free_pair": lambda a, b, c: torch.stack(objectives.noise_free_pair(a, b, sigma=0.3)),
    "clipped_policy_loss": lambda a, b, c: objectives.clipped_policy_loss(a, b, c, clip_range=0.2, adv_clip_max=0.3),
}

every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


@every_function
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precisions_are_computed_in_float32(function, half):
    inputs = [part.to(half) for part in normal(3, 2, 3, 4)]
    ours, wanted = function(*inputs), function(*(part.float() for part in inputs))
    assert ours.dtype == torch.float32
    assert torch.equal(ours, wanted)


@every_function
def test_doubles_stay_doubles_and_agree_with_float32(function):
    inputs = list(normal(3, 2, 3, 4))
    exact = function(*inputs)
    assert exact.dtype == torch.float64
    assert_close(function(*(part.float() for part in inputs)).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_the_tiny_clip_range_survives_half_precision(half):
    """`1 + 1e-5` is 1 in half precision: a ratio just past the range would be taken for one inside it."""
    log_prob = torch.tensor([2e-5], dtype=half).requires_grad_()
    old, advantages = torch.zeros(1, dtype=half), torch.ones(1, dtype=half)
    loss = objectives.clipped_policy_loss(log_prob, old, advantages, clip_range=1e-5)
    assert loss.item() == pytest.approx(-(1 + 1e-5), abs=2e-7)
    assert torch.autograd.grad(loss, log_prob)[0].item() == 0


@pytest.mark.parametrize("start", [0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5])], ids=str)
@pytest.mark.parametrize("end", [0.75, torch.tensor(0.75), torch.tensor([0.75, 0.75])], ids=str)
def test_levels_may_be_numbers_or_tensors_in_any_mixture(start, end):
    levels = {"sigma_start": start, "sigma_end": end}
    scale, std = objectives.renoise_scale(**levels)
    shape = torch.broadcast_shapes(*(level.shape for level in (start, end) if isinstance(level, Tensor)))
    assert scale.shape == std.shape == objectives.fake_score_weight(**levels).shape == shape
    assert_close(scale.double(), torch.full(shape, 0.5, dtype=torch.float64))
    assert_close(std.double() ** 2, torch.full(shape, 0.5, dtype=torch.float64))
    sample, noise = normal(2, 2, 3).float()
    assert_close(objectives.renoise(sample, noise=noise, **levels), 0.5 * sample + 0.5**0.5 * noise)


def test_a_number_as_level_is_exact_and_leaves_the_precision_of_the_other_alone():
    """0.7 is not a float32: rounded to one, it would be wrong from the eighth digit on."""
    end = torch.tensor([0.9, 0.8], dtype=torch.float64)
    for level in (0.9, end):
        scale, _ = objectives.renoise_scale(sigma_start=0.7, sigma_end=level)
        assert_close(scale, (1 - torch.as_tensor(level, dtype=torch.float64)) / 0.3, rtol=1e-14, atol=0)
    assert objectives.renoise_scale(sigma_start=0.7, sigma_end=end.float())[0].dtype == torch.float32


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_levels_are_computed_with_in_float32(half):
    level, delta = torch.tensor([0.9, 0.75], dtype=half), torch.tensor([7, 13])
    for function in (
        lambda level: objectives.renoise_scale(sigma_start=level / 2, sigma_end=level)[1],
        lambda level: objectives.fake_score_weight(sigma_start=0.5, sigma_end=level),
        lambda level: objectives.consistency_target_level(delta, sigma=level),
        lambda level: objectives.interpolate(*normal(2, 2, 3).float(), sigma=level),
    ):
        assert function(level).dtype == torch.float32
        assert torch.equal(function(level), function(level.float()))


def test_renoise_levels_from_half_precision_draws_are_float32():
    draws = torch.tensor([0.5], dtype=torch.bfloat16)
    assert objectives.renoise_level(draws, sigma_start=0.9).dtype == torch.float32


@pytest.mark.parametrize(
    "function",
    [
        lambda level: objectives.renoise_level(level, sigma_start=0.9),
        lambda level: objectives.consistency_target_level(torch.tensor([3, 7]), sigma=level),
        lambda level: torch.stack(objectives.renoise_scale(sigma_start=0.1, sigma_end=level)),
        lambda level: torch.stack(objectives.renoise_scale(sigma_start=level, sigma_end=0.99)),
        lambda level: objectives.fake_score_weight(sigma_start=0.1, sigma_end=level),
    ],
    ids=["renoise_level", "consistency_target_level", "renoise_scale end", "renoise_scale start", "fake_score_weight"],
)
def test_double_levels_stay_doubles_and_agree_with_float32(function):
    level = torch.tensor([0.7, 0.9], dtype=torch.float64)
    exact, single = function(level), function(level.float())
    assert (exact.dtype, single.dtype) == (torch.float64, torch.float32)
    assert_close(single.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.3, torch.tensor([0.25, 0.5], dtype=torch.float64)], ids=str)
@pytest.mark.parametrize(
    ("given", "computed"), [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2], ids=str
)
def test_the_helpers_give_the_precision_of_the_sample(sigma, given, computed):
    sample = normal(2, 3).to(given)
    assert objectives.at_least_float32(sample).dtype == computed
    assert objectives.broadcast_sigma(sigma, sample).dtype == computed
    assert objectives.cps_mean_std(sample, sample, sigma=0.9, sigma_next=sigma, eta=0.9)[1].dtype == computed


def test_the_package_is_pure_maths_and_exports_what_it_defines():
    """No Lightning, configuration or torch.distributed, no drawing of random numbers; `__all__` has every public function."""
    defined, folder = set(), Path(method.__file__).parent
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                root = f"{node.module}."
                assert root.startswith(("torch.", "collections.abc.", "rtdmd_lightning.method.")), (path.name, root)
            if isinstance(node, ast.Import):
                assert all(alias.name in {"math", "torch"} for alias in node.names), path.name
            if isinstance(node, ast.Attribute):
                assert node.attr not in {"randn", "rand", "randn_like", "rand_like", "randint", "cuda"}, path.name
        defined |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
    assert set(objectives.__all__) == defined
