"""Stage 2: one epoch equals the authors' trainer's, draw for draw, in all four cases of clip range, stale weights and KL."""

from dataclasses import replace

import pytest
import torch

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import Consistency, FinalStepSettings, PolicySettings, matching, policy, reward_backprop
from rtdmd_lightning.modules import RTDMDModule, explorer, rtdmd
from rtdmd_lightning.modules.cold_start import FAKE_SCORE_FILE, GENERATOR_FILE
from rtdmd_lightning.modules.optimization import EMASettings
from rtdmd_lightning.objectives import group_advantages
from rtdmd_lightning.rewards.base import Reward
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.sampling.sampler import SamplerSettings
from tests.support.golden_updates import (
    LAYOUT,
    OF_CHANGES,
    OF_PARAMETERS,
    RENOISE_DRAWS,
    Golden,
    Recorded,
    Spy,
    Steps,
    adapter_of,
    close,
    recorded_draw,
    set_adapter,
    train_on,
)

STALE = ("stale_wide", "stale_narrow", "kl")
CASES = ("on_policy", *STALE)


class Differentiable(Reward):
    """`24·mean(x·R²) + 12·mean((1-x)·G) - 12·mean(R·B) + words/4 + offset`, x from 0 at the left to 1 at the right."""

    name = "differentiable"
    differentiable = True

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def score(self, images, prompts, metadata):
        red, green, blue = images.unbind(1)
        x = torch.linspace(0, 1, images.shape[-1])
        words = torch.tensor([float(len(prompt.split())) for prompt in prompts])
        value = 24 * x * red**2 + 12 * (1 - x) * green - 12 * red * blue
        return value.mean(dim=(1, 2)) + words / 4 + self.offset


class Other(Reward):
    """The share of pixels that are redder than green."""

    name = "other"
    differentiable = False

    def score(self, images, prompts, metadata):
        return (images[:, 0] > images[:, 1]).float().mean(dim=(1, 2))


@pytest.fixture(scope="module")
def golden():
    return Golden("rtdmd")


@pytest.fixture(scope="module")
def cold_start(golden, tmp_path_factory):
    """Stage 1's result, as its own golden file ends."""
    folder, before = tmp_path_factory.mktemp("cold_start"), Golden("cold_start")
    torch.save(before.adapter("generator_ema_after", LAYOUT), folder / GENERATOR_FILE)
    torch.save(before.adapter("fake_3/after", LAYOUT), folder / FAKE_SCORE_FILE)
    return folder


@pytest.fixture(scope="module")
def epochs(golden, cold_start):
    """By case: the module after its epoch, and what was seen on the way."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        done = {}
        for case in CASES:
            with monkeypatch.context() as of_case:
                done[case] = run(golden, cold_start, case, of_case)
        yield done


def run(golden, cold_start, case, monkeypatch):
    told, of_case = golden.constants, golden.told["cases"][case]
    weights = golden.told["rewards"]["weights"]
    module = RTDMDModule(
        golden.backbone(),
        batch_size=golden.told["batch_size"],
        guidance_scale=tuple(told["guidance_scale"]),
        rewards=RewardMixture(
            [Differentiable(golden.told["rewards"]["offset"]), Other()], weights, back_propagated=["differentiable"]
        ),
        cold_start=str(cold_start),
        images_per_prompt=golden.told["images_per_prompt"],
        micro_batches=golden.told["micro_batches"],
        shuffle=True,
        policy=PolicySettings(
            trained_steps=len(golden.told["trained_steps"]),
            clip_range=of_case["clip_range"],
            advantage_clip=of_case["advantage_clip"],
            kl_weight=of_case["kl_weight"],
            ratio_check="off" if of_case["stale"] else "stop",  # stale: the ratio is not 1 on purpose
            global_std=told["global_std"],
        ),
        final_step=FinalStepSettings(
            matching_weight=told["matching_weight"],
            reward_weight=told["reward_weight"],
            reward_ceiling=told["reward_ceiling"],
        ),
        sampler=SamplerSettings(steps=told["steps"], eta=told["eta"]),
        lora=LoraSettings(rank=told["lora_rank"], alpha=told["lora_alpha"]),
        consistency=Consistency(weight=told["consistency_weight"], max_delta=told["consistency_max_delta"]),
        generator_optimizer=golden.optimizer("generator"),
        fake_optimizer=golden.optimizer("fake"),
        ema=EMASettings(decay=told["ema_decay"], every=told["ema_interval"], warm_up=True),
    )
    module.configure_model()
    set_adapter(module, GENERATOR, golden.adapter("initial/generator", LAYOUT))
    set_adapter(module, FAKE_SCORE, golden.adapter("initial/fake_score", LAYOUT))
    set_adapter(module, EMA, golden.adapter("displaced/generator", LAYOUT))

    prompts = [golden.told["prompts"][row] for row in golden.told["prompt_rows"]]

    def find(use: str, purpose: str, index: int) -> torch.Tensor:
        for begin, prefix in (("generator update ", "draw/final_step"), ("fake update ", "draw/fake")):
            if purpose.startswith(begin):
                return recorded_draw(golden, prefix, RENOISE_DRAWS[purpose.removeprefix(begin)], index)
        return recorded_draw(golden, "draw", purpose.replace(" ", "_"), index)

    def shared_noise(of_batch, shape, *, seed, epoch, step):
        rows = [prompts.index(prompt) for prompt in of_batch]
        return torch.stack([recorded_draw(golden, "draw", f"step_{step}", row) for row in rows])

    monkeypatch.setattr(module, "random_of", lambda batch: Recorded(find, batch.indices))
    monkeypatch.setattr(PolicySettings, "choose", lambda *_: golden.told["trained_steps"])
    monkeypatch.setattr(explorer, "shared_noise", shared_noise)
    order = golden["draw/permutation"].view(golden.told["micro_batches"], -1)
    monkeypatch.setattr(rtdmd, "shuffled", lambda parts, generator: [Rollout.cat(parts).at(r.tolist()) for r in order])
    with_advantages, seen = explorer.with_advantages, {}

    def displaced(rollouts, *args, **kwargs):
        """What lies between the advantages and the training of the stale cases."""
        rollouts, rewards = with_advantages(rollouts, *args, **kwargs)
        seen.update(rollouts=rollouts, rewards=rewards)
        if not of_case["stale"]:
            return rollouts, rewards
        set_adapter(module, GENERATOR, golden.adapter("displaced/generator", LAYOUT))
        shift = golden["old_log_prob_shift"]
        stale = [
            {step: old + shift[rollout.batch.indices, step] for step, old in rollout.log_probs.items()}
            for rollout in rollouts
        ]
        return [replace(part, log_probs=old) for part, old in zip(rollouts, stale, strict=True)], rewards

    monkeypatch.setattr(explorer, "with_advantages", displaced)
    averages = []
    move_average = module.move_average
    monkeypatch.setattr(
        module, "move_average", lambda moves: move_average(moves) or averages.append(adapter_of(module, EMA))
    )
    spy, steps = Spy(monkeypatch), Steps(module, monkeypatch)
    spy.on(module.optimize, "backward")
    spy.on(module.explore, "sample")
    spy.on(matching, "fake_score_loss", "consistency_loss", "distribution_matching_loss")
    spy.on(module.sampler, "log_prob")
    spy.on(policy, "step_kl")
    spy.on(reward_backprop, "reward_hinge_loss")
    train_on(module, PromptBatch(prompts, [{} for _ in prompts], list(range(len(prompts)))))
    return module, spy, steps, seen, averages


@pytest.fixture(params=CASES)
def case(request, epochs):
    return request.param, *epochs[request.param]


def by_sample(golden, of_micro_batches):
    """Per-sample values of the micro-batches, in the order of the samples."""
    values = torch.cat(list(of_micro_batches))
    back = torch.empty_like(values)
    back[golden["draw/permutation"]] = values
    return back


def test_the_step_that_is_not_trained_has_one_noise_a_prompt(golden):
    groups = golden["draw/step_1"].split(golden.told["images_per_prompt"])
    assert all(torch.equal(noise, group[0]) for group in groups for noise in group)


def test_rollouts_and_rewards(golden, case):
    _, _, spy, _, seen, _ = case
    levels = zip(*(rollout.states for rollout in seen["rollouts"]), strict=True)
    close(torch.stack([by_sample(golden, of_level) for of_level in levels], dim=1), golden["rollout/states"])
    close(torch.cat([images for _, _, images in spy.results("sample")]), golden["rollout/images"])
    for step in golden.told["trained_steps"]:
        log_probs = by_sample(golden, (rollout.log_probs[step] for rollout in seen["rollouts"]))
        close(log_probs, golden["rollout/log_probs"][:, step])
    for name in ("differentiable", "other"):
        close(seen["rewards"][name], golden[f"rewards/{name}"])
    close(by_sample(golden, (rollout.advantages for rollout in seen["rollouts"])), golden["advantages"])


def test_the_fake_score(golden, case):
    _, _, spy, steps, _, _ = case
    told = golden.told["fake"]
    losses = {"ambient": "fake_score_loss", "consistency": "consistency_loss"}
    for name, function in losses.items():
        close(torch.stack(spy.results(function)).mean(), told[name])
    total = sum(args[1] for args, _, _ in spy.calls["backward"] if args[0] == FAKE_SCORE)
    close(total, told["loss"])
    close(steps.norms[FAKE_SCORE][0], told["gradient_norm"], OF_PARAMETERS)
    close(steps.gradients[FAKE_SCORE][0], golden["fake/gradient"], OF_PARAMETERS)
    close(steps.after[FAKE_SCORE][0], golden["fake/after"], OF_PARAMETERS)
    before = golden["initial/fake_score"]
    close(steps.after[FAKE_SCORE][0] - before, golden["fake/after"] - before, OF_CHANGES)


def test_the_parts_of_the_generators_loss(golden, case):
    """Term by term, by micro-batch and step, as they are back-propagated; and their sum."""
    name, module, spy, *_ = case
    told = golden.told["cases"][name]
    ours = [args[1] for args, _, _ in spy.calls["backward"] if args[0] == GENERATOR]
    stochastic = [part for part in told["parts"] if part["step"] != golden.told["last_step"]]
    final = [part for part in told["parts"] if part["step"] == golden.told["last_step"]]
    for loss, part in zip(ours, [*stochastic, *final], strict=True):
        close(loss, part["back_propagated"], least=1e-1)
    close(sum(ours), told["loss"], least=1e-1)
    for number, part in enumerate(final):
        matching_loss, hinge = (
            spy.results(function)[number] for function in ("distribution_matching_loss", "reward_hinge_loss")
        )
        close(matching_loss, part["matching"])
        close(hinge, part["hinge"])
        close(module.final_step.matching_weight * matching_loss, part["matching_weighted"])
        close(module.final_step.reward_weight * hinge, part["hinge_weighted"])
    if told["kl_weight"]:
        for kl, part in zip(spy.results("step_kl"), stochastic, strict=True):
            close(kl.mean(), part["kl"])


def test_ratios_rewards_and_pulls_by_sample(golden, case):
    name, module, spy, *_ = case
    steps = golden.told["trained_steps"]
    batches = golden.told["micro_batches"]
    of_training = spy.results("log_prob")[-batches * len(steps) :]
    by_step = [by_sample(golden, of_training[number :: len(steps)]) for number in range(len(steps))]
    log_prob = torch.stack(by_step, dim=1)
    close(log_prob, golden[f"case/{name}/log_prob"])
    old = golden["rollout/log_probs"][:, steps]
    old = old + golden["old_log_prob_shift"][:, steps] if name in STALE else old
    policy, advantages = (
        module.policy,
        golden["advantages"].clamp(-module.policy.advantage_clip, module.policy.advantage_clip),
    )
    ratio = torch.exp(log_prob.detach() - old)
    clipped = ratio.clamp(1 - policy.clip_range, 1 + policy.clip_range)
    term = torch.maximum(-advantages[:, None] * ratio, -advantages[:, None] * clipped)
    close(term, golden[f"case/{name}/policy_term"])
    close(by_sample(golden, spy.first("reward_hinge_loss")), golden[f"case/{name}/differentiable_reward"])
    pulled = name if name in ("on_policy", "stale_wide") else "stale_wide"
    arguments = zip(*(args for args, _, _ in spy.calls["distribution_matching_loss"]), strict=True)
    for key, of_batches in zip(("x_s", "x_s_fake", "x_s_teacher"), arguments, strict=True):
        close(by_sample(golden, of_batches), golden[f"case/{pulled}/{key}"])


def test_the_generators_gradient_and_step(golden, case):
    name, _, _, steps, _, _ = case
    told = golden.told["cases"][name]
    close(steps.norms[GENERATOR][0], told["gradient_norm"], OF_PARAMETERS)
    close(steps.gradients[GENERATOR][0], golden[f"case/{name}/gradient"], OF_PARAMETERS)
    clip = min(1.0, golden.constants["generator_optimizer"]["max_grad_norm"] / (told["gradient_norm"] + 1e-6))
    close(steps.clipped[-1], clip * golden[f"case/{name}/gradient"], OF_PARAMETERS)
    if name == "on_policy":
        close(steps.clipped[-1], golden["case/on_policy/clipped_gradient"], OF_PARAMETERS)
    if name != "kl":
        before = golden["displaced/generator" if name in STALE else "initial/generator"]
        after = golden[f"case/{name}/after"]
        close(steps.after[GENERATOR][0], after, OF_PARAMETERS)
        close(steps.after[GENERATOR][0] - before, after - before, OF_CHANGES)


def test_the_average_moves_once_a_micro_batch(golden, epochs):
    """Before the optimizer's step with the number of steps done before it, after it with the next number."""
    *_, averages = epochs["on_policy"]
    start = golden["displaced/generator"]
    for micro_batch, average in enumerate(averages):
        theirs = golden[f"case/on_policy/ema_after_micro_batch_{micro_batch}"]
        close(average, theirs, OF_PARAMETERS)
        close(average - start, theirs - start, OF_PARAMETERS)


def test_groups_without_differences_are_dropped(golden):
    """Ours always; theirs by chance (see the folder's README). The other group's advantages are theirs."""
    rewards = {name: golden[f"ties/reward_{name}"] for name in "ab"}
    groups = ["first"] * 4 + ["second"] * 4
    advantages = group_advantages(rewards, groups, {"a": 1.0, "b": 0.5})
    assert advantages[:4].tolist() == [0.0] * 4
    kept = golden["ties/kept"]
    assert set(advantages.nonzero().flatten().tolist()) <= set(kept.tolist())
    close(advantages[kept], golden["ties/advantages_of_kept"])
