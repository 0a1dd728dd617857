"""Stage 1: one cycle (three fake-score updates, one generator update) equals the authors' trainer's, draw for draw."""

import copy

import pytest
import torch

from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import Consistency, matching
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.modules.ac_dmd import Update
from rtdmd_lightning.modules.optimization import EMASettings
from rtdmd_lightning.objectives import renoise_scale
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.sampling.sampler import SamplerSettings
from tests.support.golden_updates import (
    FOLDER,
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
    load_file,
    recorded_draw,
    set_adapter,
    train_on,
)


@pytest.fixture(scope="module")
def golden():
    return Golden("cold_start")


@pytest.fixture(scope="module")
def cycle(golden):
    """The module after one training step, and all that was seen on the way."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield run(golden, monkeypatch)


def run(golden, monkeypatch):
    told, updates = golden.constants, golden.told["updates"]
    module = ACDMDModule(
        golden.backbone(),
        batch_size=told["batch_size"],
        guidance_scale=tuple(told["guidance_scale"]),
        sampler=SamplerSettings(steps=told["steps"], eta=told["eta"]),
        lora=LoraSettings(rank=told["lora_rank"], alpha=told["lora_alpha"]),
        consistency=Consistency(weight=told["consistency_weight"], max_delta=told["consistency_max_delta"]),
        generator_optimizer=golden.optimizer("generator"),
        fake_optimizer=golden.optimizer("fake"),
        fake_update_ratio=told["fake_update_ratio"],
        ema=EMASettings(decay=told["ema_decay"]),
        reuse_rollouts=False,
    )
    module.configure_model()
    for role in (GENERATOR, FAKE_SCORE, EMA):
        set_adapter(module, role, golden.adapter(f"initial/{role}", LAYOUT))

    size = told["batch_size"]
    names = [update["name"] for update in updates]

    def find(use: str, purpose: str, index: int) -> torch.Tensor:
        number, row = divmod(index, size)
        name = "generator" if use == "generator" else names[number]
        for begin in ("generator update ", f"fake update {number} "):
            if purpose.startswith(begin):
                return recorded_draw(golden, f"{name}/draw", RENOISE_DRAWS[purpose.removeprefix(begin)], row)
        return recorded_draw(golden, f"{name}/draw", purpose.replace(" ", "_"), row)

    monkeypatch.setattr(module, "random_of", lambda batch: Recorded(find, batch.indices))
    plan = [Update(min(number, 2), update["stop"]) for number, update in enumerate(updates)]
    assert updates[2]["prompt_rows"] == updates[3]["prompt_rows"] and module.draw_updates(0)[1].batch == 2
    monkeypatch.setattr(module, "draw_updates", lambda cycle: (plan[:3], plan[3]))

    spy, steps = Spy(monkeypatch), Steps(module, monkeypatch)
    spy.on(module, "roll_out_to", "last_step")
    spy.on(module.optimize, "backward")
    monkeypatch.setattr(module.fake_score_loss, "sampler", copy.copy(module.sampler))
    monkeypatch.setattr(module.matching_loss, "sampler", module.fake_score_loss.sampler)
    spy.on(module.fake_score_loss.sampler, "step")  # not that of the rollouts
    spy.on(matching, "renoise", "fake_score_loss", "consistency_loss", "consistency_target_level")
    spy.on(matching, "distribution_matching_loss")

    prompts = [golden.told["prompts"][row] for update in updates[:3] for row in update["prompt_rows"]]
    train_on(module, PromptBatch(prompts, [{} for _ in prompts], list(range(len(prompts)))))
    return module, spy, steps


FAKES = ["fake_1", "fake_2", "fake_3"]
ALL = [*FAKES, "generator"]


def told_of(golden, name):
    return next(update for update in golden.told["updates"] if update["name"] == name)


def test_prompts_are_embedded_as_theirs(golden, cycle):
    """77 CLIP positions, then 128 of T5, for the empty prompt too."""
    module, *_ = cycle
    theirs = load_file(FOLDER / "prompts.safetensors")
    ours = module.embed(golden.told["prompts"], torch.device("cpu"))
    assert ours.embeds.shape[1] == 205
    close(ours.embeds, theirs["embeds"])
    close(ours.pooled, theirs["pooled"])


def test_levels_of_the_schedule(golden, cycle):
    close(torch.tensor(cycle[0].sampler.sigmas), torch.tensor(golden.constants["sigmas"]))


@pytest.mark.parametrize("number", range(4))
def test_rollouts(golden, cycle, number):
    """The states before each executed step, the last velocity, and the boundary sample that is reached."""
    _, spy, _ = cycle
    name, trajectory = ALL[number], spy.results("roll_out_to")[number]
    states = golden[f"{name}/rollout_states"]
    close(torch.stack(trajectory.states[: states.shape[1]], dim=1), states)
    if name == "generator":
        (step,) = spy.results("last_step")
        close(step.velocity, golden[f"{name}/last_velocity"])
        reached = step.next_state
    else:
        close(trajectory.velocities[-1], golden[f"{name}/last_velocity"])
        reached = trajectory.samples
    close(reached, golden[f"{name}/x_s"])


@pytest.mark.parametrize("number", range(4))
def test_renoising(golden, cycle, number):
    _, spy, _ = cycle
    name = ALL[number]
    (start,), drawn, end = spy.calls["renoise"][number]
    close(start, golden[f"{name}/x_s"])
    close(1000 * drawn["sigma_end"], golden[f"{name}/renoise_timestep"])
    close(drawn["sigma_start"], told_of(golden, name)["sigma_start"])
    _, std = renoise_scale(sigma_start=drawn["sigma_start"], sigma_end=drawn["sigma_end"])
    close(std, golden[f"{name}/sigma_ts"])
    close(end, golden[f"{name}/x_t"])


@pytest.mark.parametrize("number", range(3))
def test_fake_score_losses(golden, cycle, number):
    _, spy, _ = cycle
    name, told = FAKES[number], told_of(golden, FAKES[number])
    close(spy.first("fake_score_loss")[number], golden[f"{name}/velocity_at_x_t"])
    close(1000 * spy.results("consistency_target_level")[number], golden[f"{name}/branch_timestep"])
    for branch, moved in enumerate(spy.results("step")[number].chunk(2), start=1):
        close(moved, golden[f"{name}/branch_{branch}/x"])
    close(spy.results("fake_score_loss")[number], told["ambient"])
    close(spy.results("consistency_loss")[number], told["consistency"])
    (role, loss), *_ = spy.calls["backward"][number]
    assert role == FAKE_SCORE
    close(loss, told["loss"])


def test_generator_loss(golden, cycle):
    _, spy, _ = cycle
    told = told_of(golden, "generator")
    for call, role in ((3, "teacher"), (4, "fake")):
        args, _, back = spy.calls["step"][call]
        close(args[1], golden[f"generator/{role}_velocity"])
        close(back, golden[f"generator/x_s_{role}"])
    (_, loss), *_ = spy.calls["backward"][3]
    close(loss, told["loss"])
    pull = (2 * loss.double() * golden["generator/x_s"].numel()).sqrt()  # L_G is half the mean square of the pull
    close(pull, told["gradient_l2"])


@pytest.mark.parametrize("name", ALL)
def test_gradients_and_optimizer_steps(golden, cycle, name):
    _, _, steps = cycle
    role, number = (GENERATOR, 0) if name == "generator" else (FAKE_SCORE, FAKES.index(name))
    before = golden[f"initial/{role}"] if number == 0 else golden[f"{FAKES[number - 1]}/after"]
    close(steps.norms[role][number], told_of(golden, name)["gradient_norm"], OF_PARAMETERS)
    close(steps.gradients[role][number], golden[f"{name}/gradient"], OF_PARAMETERS)
    close(steps.after[role][number], golden[f"{name}/after"], OF_PARAMETERS)
    close(steps.after[role][number] - before, golden[f"{name}/after"] - before, OF_CHANGES)


def test_the_average_moves_with_every_fake_score_update(golden, cycle):
    module, *_ = cycle
    before = golden["initial/generator_ema"]
    after = adapter_of(module, EMA)
    close(after, golden["generator_ema_after"], OF_PARAMETERS)
    close(after - before, golden["generator_ema_after"] - before, OF_PARAMETERS)
