"""Parity with the public implementation of the paper, number by number (tests/data/golden.json)."""

import json
from pathlib import Path

import pytest
import torch

from rtdmd_lightning import objectives

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "golden.json").read_text())


def close(ours, theirs):
    """To float32's rounding; where large terms cancel, to that of the largest number (processors differ in it)."""
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    rounding = 1e-7 * max(1.0, float(theirs.abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=rounding, check_dtype=False)


def tensors(entry: dict, *names: str) -> list[torch.Tensor]:
    return [torch.tensor(entry[name]) for name in names]


@pytest.mark.parametrize("entry", GOLDEN["sigma_schedules"], ids=lambda e: f"{e['family']}-{len(e['steps'])}")
def test_schedules(entry):
    steps = entry["steps"]
    if entry["family"] == "sd3":
        ours = objectives.shift_sigmas(steps, shift=entry["shift"])
    elif entry["family"] == "flux":
        ours = objectives.dynamic_shift_sigmas(steps, mu=objectives.flux_mu(entry["image_seq_len"]))
    else:
        ours = objectives.dynamic_shift_sigmas(steps, mu=objectives.flux2_mu(entry["image_seq_len"], len(steps)))
    close(ours, entry["sigmas"])


@pytest.mark.parametrize("entry", GOLDEN["cps_step"])
def test_cps_step(entry):
    sample, velocity, noise = tensors(entry, "sample", "velocity", "noise")
    levels = {name: entry[name] for name in ("sigma", "sigma_next", "eta")}
    close(objectives.cps_step(sample, velocity, noise=noise, **levels), entry["next_sample"])


@pytest.mark.parametrize("entry", GOLDEN["cps_log_prob"])
def test_cps_log_prob(entry):
    sample, velocity, following = tensors(entry, "sample", "velocity", "next_sample")
    levels = {name: entry[name] for name in ("sigma", "sigma_next", "eta")}
    mean, std = objectives.cps_mean_std(sample, velocity, **levels)
    close(objectives.cps_log_prob(sample, velocity, following, **levels), entry["log_prob"])
    close(mean, entry["mean"])
    close(std.expand_as(torch.tensor(entry["std"])), entry["std"])


@pytest.mark.parametrize("entry", GOLDEN["ambient"])
def test_ambient(entry):
    x_start, noise, sigma_end, prediction = tensors(entry, "x_start", "noise", "sigma_end", "prediction")
    levels = {"sigma_start": entry["sigma_start"], "sigma_end": sigma_end}
    target = objectives.ambient_velocity_target(x_start, noise=noise, **levels)
    _, scale = objectives.renoise_scale(**levels)
    close(objectives.renoise(x_start, noise=noise, **levels), entry["x_end"])
    close(target, entry["velocity_target"])
    close(scale, entry["scale"])
    close(scale.view(-1, 1, 1, 1) * target, entry["scaled_target"])
    close(objectives.fake_score_weight(**levels), entry["weight"])
    close(objectives.fake_score_loss(prediction, target, **levels), entry["loss"])


@pytest.mark.parametrize("entry", GOLDEN["dm_loss"])
def test_distribution_matching_loss(entry):
    x, fake, teacher = tensors(entry, "x", "fake", "teacher")
    x.requires_grad_()
    loss = objectives.distribution_matching_loss(x, fake, teacher, normalize=entry["normalize"])
    loss.backward()
    close(loss.detach(), entry["loss"])
    close(x.grad, entry["grad"])


@pytest.mark.parametrize("entry", GOLDEN["advantages"])
def test_advantages(entry):
    rewards = {name: torch.tensor(values) for name, values in entry["rewards"].items()}
    for name, reward in rewards.items():
        ours = objectives.normalized_group_rewards(reward, entry["prompts"], global_std=entry["global_std"])
        close(ours, entry["per_reward"][name])
    ours = objectives.group_advantages(rewards, entry["prompts"], entry["weights"], global_std=entry["global_std"])
    close(ours, entry["advantages"])


@pytest.mark.parametrize("entry", GOLDEN["policy_loss"])
def test_policy_loss(entry):
    log_prob, old, advantages = tensors(entry, "log_prob", "old_log_prob", "advantages")
    clip = {name: entry[name] for name in ("clip_range", "adv_clip_max")}
    close(objectives.clipped_policy_loss(log_prob, old, advantages, **clip), entry["loss"])
