"""The CPS step, its log-probability and the posterior transition, against algebra."""

import math

import pytest
import torch
from torch.testing import assert_close

from rtdmd_lightning import objectives
from tests.support.gaussian import covariance, normal, probe, variables

STEPS = [(1.0, 0.9), (0.9, 0.75), (0.75, 0.5), (0.5, 0.0)]
SHAPE = (3, 2, 4)


def triple() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A sample, a velocity and a noise."""
    return normal(*SHAPE, seed=1), normal(*SHAPE, seed=2), normal(*SHAPE, seed=3)


@pytest.mark.parametrize(("sigma", "sigma_next"), STEPS)
def test_eta_zero_is_the_euler_step_whatever_the_noise(sigma, sigma_next):
    sample, velocity, noise = triple()
    step = objectives.cps_step(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=0.0, noise=1e6 * noise)
    assert_close(step, sample + (sigma_next - sigma) * velocity)


@pytest.mark.parametrize(("sigma", "sigma_next"), STEPS)
def test_eta_one_renoises_the_clean_prediction(sigma, sigma_next):
    sample, velocity, noise = triple()
    step = objectives.cps_step(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=1.0, noise=noise)
    assert_close(step, objectives.interpolate(sample - sigma * velocity, noise, sigma=sigma_next))


@pytest.mark.parametrize(("sigma", "sigma_next"), STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.9, 1.0])
def test_the_true_clean_and_noise_keep_their_coefficients(sigma, sigma_next, eta):
    """`(1-σ')` of x0 and noise of total standard deviation σ', of which `cos(ηπ/2)` the old one: for every η."""
    _, clean, noise, fresh = variables(3)
    step = probe(
        lambda x0, eps, z: objectives.cps_step(
            objectives.interpolate(x0, eps, sigma=sigma),
            eps - x0,
            sigma=sigma,
            sigma_next=sigma_next,
            eta=eta,
            noise=z,
        ),
        clean,
        noise,
        fresh,
    )
    of_clean, of_noise, of_fresh = (covariance(step, part).item() for part in (clean, noise, fresh))
    assert of_clean == pytest.approx(1 - sigma_next, abs=1e-15)
    assert of_noise == pytest.approx(sigma_next * math.cos(eta * math.pi / 2), abs=1e-15)
    assert math.hypot(of_noise, of_fresh) == pytest.approx(sigma_next, abs=1e-15)


@pytest.mark.parametrize("eta", [0.0, 0.9, 1.0])
def test_the_last_step_is_the_clean_prediction_exactly(eta):
    sample, velocity, noise = triple()
    last = {"sigma": 0.5, "sigma_next": 0.0}
    clean = objectives.clean_from_velocity(sample, velocity, sigma=0.5)
    assert torch.equal(objectives.cps_step(sample, velocity, eta=eta, noise=noise, **last), clean)
    assert torch.equal(objectives.posterior_step(sample, velocity, noise=noise, **last), clean)


@pytest.mark.parametrize("function", [objectives.cps_step, objectives.posterior_step])
def test_a_level_per_sample_steps_each_sample_by_its_own(function):
    options = {"eta": 0.9} if function is objectives.cps_step else {}
    sample, velocity, noise = triple()
    sigma, sigma_next = torch.tensor([[1.0, 0.9, 0.5], [0.9, 0.75, 0.0]], dtype=torch.float64)
    together = function(sample, velocity, sigma=sigma, sigma_next=sigma_next, noise=noise, **options)
    alone = [
        function(
            sample[i : i + 1],
            velocity[i : i + 1],
            sigma=sigma[i].item(),
            sigma_next=sigma_next[i].item(),
            noise=noise[i : i + 1],
            **options,
        )
        for i in range(len(sample))
    ]
    assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("eta", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("sigma_next", [0.75, torch.tensor([0.9, 0.75, 0.1], dtype=torch.float64)], ids=str)
def test_the_exact_log_prob_is_that_of_torch(sigma_next, eta):
    sample, velocity, following = triple()
    levels = {"sigma": 0.95, "sigma_next": sigma_next, "eta": eta}
    mean, std = objectives.cps_mean_std(sample, velocity, **levels)
    ours = objectives.cps_log_prob(sample, velocity, following, exact=True, **levels)
    assert_close(ours, torch.distributions.Normal(mean, std).log_prob(following).sum(dim=(1, 2)))


@pytest.mark.parametrize(
    ("sigma_next", "eta"),
    [(0.0, 0.9), (0.75, 0.0), (torch.tensor([0.75, 0.0, 0.5], dtype=torch.float64), 0.9)],
    ids=["last", "Euler", "one sample of three"],
)
def test_a_deterministic_step_has_no_exact_log_prob(sigma_next, eta):
    levels = {"sigma": 0.9, "sigma_next": sigma_next, "eta": eta}
    with pytest.raises(ValueError, match="deterministic step"):
        objectives.cps_log_prob(*triple(), exact=True, **levels)
    assert objectives.cps_log_prob(*triple(), **levels).isfinite().all()


def test_the_default_log_prob_by_hand():
    """With x = 1, v = 2, σ = ½, σ' = ¼: x̂0 = 0, ε̂ = 2, so at η = ⅔ the mean is ¼·½·2 = ¼, whatever the std."""
    sample = torch.ones(2, 1, 2, dtype=torch.float64)
    following = torch.tensor([[[0.25, 0.25]], [[1.25, -1.75]]], dtype=torch.float64)
    log_prob = objectives.cps_log_prob(sample, 2 * sample, following, sigma=0.5, sigma_next=0.25, eta=2 / 3)
    assert_close(log_prob, torch.tensor([0.0, -(1 + 4) / 2], dtype=torch.float64))


@pytest.mark.parametrize(("sigma", "sigma_next"), STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.9])
def test_the_gradient_of_the_mean_reaches_sample_and_velocity_through_both_predictions(sigma, sigma_next, eta):
    """The mean is linear in them: of the sample `(1-σ') + σ'·cos`, of the velocity `-(1-σ')·σ + σ'·cos·(1-σ)`."""
    sample, velocity = (part.requires_grad_() for part in triple()[:2])
    mean, _ = objectives.cps_mean_std(sample, velocity, sigma=sigma, sigma_next=sigma_next, eta=eta)
    of_noise = sigma_next * math.cos(eta * math.pi / 2)
    expected = (1 - sigma_next) + of_noise, of_noise * (1 - sigma) - (1 - sigma_next) * sigma
    for gradient, wanted in zip(torch.autograd.grad(mean.sum(), (sample, velocity)), expected, strict=True):
        assert_close(gradient, torch.full_like(gradient, wanted))


@pytest.mark.parametrize("exact", [False, True])
def test_the_log_prob_pulls_the_velocity_towards_the_step_taken(exact):
    """At the mean itself the gradient is zero; past it, a small ascent step raises the log-probability of each sample."""
    sample, velocity, noise = triple()
    levels = {"sigma": 0.9, "sigma_next": 0.75, "eta": 0.9}

    def log_prob_and_gradient(following: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        leaf = velocity.clone().requires_grad_()
        log_prob = objectives.cps_log_prob(sample, leaf, following, exact=exact, **levels)
        return log_prob.detach(), torch.autograd.grad(log_prob.sum(), leaf)[0]

    at_mean = objectives.cps_step(sample, velocity, noise=torch.zeros_like(noise), **levels)
    _, gradient = log_prob_and_gradient(at_mean)
    assert_close(gradient, torch.zeros_like(gradient))

    taken = objectives.cps_step(sample, velocity, noise=noise, **levels)
    before, gradient = log_prob_and_gradient(taken)
    after = objectives.cps_log_prob(sample, velocity + 1e-3 * gradient, taken, exact=exact, **levels)
    assert (after > before).all()


@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.9), (0.9, 0.75), (0.5, 0.49), (0.5, 0.0), (0.02, 0.01)])
def test_the_posterior_step_is_the_bridge_of_the_forward_process(sigma, sigma_next):
    """Given x0 it has the joint law of two levels of one path: x' from x0, then x_t renoised from x'."""
    _, clean, noise, fresh = variables(3)
    sample = objectives.interpolate(clean, noise, sigma=sigma)
    step = probe(
        lambda x, x0, eps, z: objectives.posterior_step(x, eps - x0, sigma=sigma, sigma_next=sigma_next, noise=z),
        sample,
        clean,
        noise,
        fresh,
    )
    lower = objectives.interpolate(clean, noise, sigma=sigma_next)
    upper = objectives.renoise(lower, sigma_start=sigma_next, sigma_end=sigma, noise=fresh)
    for ours, path in [
        ((step, clean), (lower, clean)),
        ((step, step), (lower, lower)),
        ((step, sample), (lower, upper)),
    ]:
        assert_close(covariance(*ours), covariance(*path))


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.0])
def test_the_posterior_step_to_the_same_level_stays(sigma):
    sample, velocity, noise = triple()
    step = objectives.posterior_step(sample, velocity, sigma=sigma, sigma_next=sigma, noise=1e6 * noise)
    assert_close(step, sample)


@pytest.mark.parametrize("sigma_next", [0.0, 0.3, 0.999])
def test_the_posterior_step_from_pure_noise_renoises_the_clean_prediction(sigma_next):
    """At t = 1 the sample says nothing about the level below: ρ = 0."""
    sample, velocity, noise = triple()
    step = objectives.posterior_step(sample, velocity, sigma=1.0, sigma_next=sigma_next, noise=noise)
    assert_close(step, objectives.interpolate(sample - velocity, noise, sigma=sigma_next))


@pytest.mark.parametrize("sigma_next", [0.0, 0.4, 0.89])
def test_the_posterior_step_is_the_cps_step_whose_cosine_is_rho(sigma_next):
    sample, velocity, noise = triple()
    rho = sigma_next * (1 - 0.9) / (0.9 * (1 - sigma_next))
    levels = {"sigma": 0.9, "sigma_next": sigma_next, "noise": noise}
    cps = objectives.cps_step(sample, velocity, eta=math.acos(rho) * 2 / math.pi, **levels)
    assert_close(objectives.posterior_step(sample, velocity, **levels), cps)
