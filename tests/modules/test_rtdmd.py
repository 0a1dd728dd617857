"""RTDMD: ratio one, one forward per step, shared noise, what each ablation leaves out."""

import math
import shutil
from collections import Counter

import pytest

from rtdmd_lightning import fit
from rtdmd_lightning.losses import FinalStepSettings
from rtdmd_lightning.modules.cold_start import GENERATOR_FILE
from rtdmd_lightning.modules.rtdmd import RTDMDModule
from rtdmd_lightning.roles.roles import COLD_START, EMA, FAKE_SCORE, GENERATOR, TEACHER, Roles
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import train
from tests.support.tiny_rtdmd import save_cold_start, tiny_rtdmd_module, write_rtdmd_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def run_epochs(tmp_path, tiny_folder, cold_start, *options, epochs=1):
    """An in-process run; returns the module, what it logged last, and the forward passes' samples by role."""
    counts: Counter = Counter()
    original = Roles.velocity

    def counting(self, role, latents, sigma, conditioning):
        counts[role] += len(latents)
        return original(self, role, latents, sigma, conditioning)

    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Roles, "velocity", counting)
        run = fit.main(["--config", str(config), f"--trainer.max_steps={epochs}", *options])
    return run.model, run.trainer.callback_metrics, counts


SAMPLES = 16  # 4 micro-batches of 4


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--trainer.precision=bf16-mixed"],
        ["--model.backbone.gradient_checkpointing=true"],
        ["--model.trajectory_dtype=bfloat16"],
        ["--trainer.precision=bf16-mixed", "--model.backbone.dtype=bfloat16", "--model.trajectory_dtype=bfloat16"],
    ],
)
def test_the_ratio_is_one_on_the_first_update(tmp_path, tiny_folder, cold_start, options):
    _, logged, _ = run_epochs(tmp_path, tiny_folder, cold_start, *options)
    assert logged["policy/ratio_deviation"] < 1e-6
    assert logged["policy/clipped"] == 0


def test_other_weights_make_another_ratio(tmp_path, tiny_folder, cold_start):
    """So the check above can fail: here the generator's weights move between the rollout and the update."""
    original = RTDMDModule.update_fake_score

    def and_move_the_generator(self, rollouts):
        original(self, rollouts)
        for parameter in self.roles.parameters_of(GENERATOR):
            parameter.data += 0.05

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RTDMDModule, "update_fake_score", and_move_the_generator)
        _, logged, _ = run_epochs(tmp_path, tiny_folder, cold_start, "--model.policy.ratio_check=off")
    assert logged["policy/ratio_deviation"] > 1e-4
    assert logged["policy/clipped"] > 0.9


def test_the_largest_deviation_of_the_epoch_is_logged_and_the_mean_of_the_rest(tmp_path, tiny_folder, cold_start):
    """Not the last micro-batch's, which is what Lightning keeps of several logs in a step."""
    deviations, hinges = [], []

    def watched_policy(self, rollout, step):
        rollout.log_probs[step].add_(0.1 if not deviations else 0.0)  # the first of the epoch alone is off
        loss = stochastic_loss(self, rollout, step)
        deviations.append(1 - math.exp(-0.1) if not deviations else 0.0)
        return loss

    def watched_terms(self, rollout, rows, guidance_scale):
        terms = final_terms(self, rollout, rows, guidance_scale)
        hinges.append((len(rows) * terms["reward"].value.item(), len(rows)))
        return terms

    stochastic_loss, final_terms = RTDMDModule.stochastic_loss, RTDMDModule.final_terms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RTDMDModule, "stochastic_loss", watched_policy)
        patch.setattr(RTDMDModule, "final_terms", watched_terms)
        unchecked = "--model.policy.ratio_check=off"
        _, logged, _ = run_epochs(tmp_path / "one", tiny_folder, cold_start, unchecked)
        expected, of_one = deviations[:], hinges[:]
        deviations.clear()
        _, of_the_second, _ = run_epochs(tmp_path / "two", tiny_folder, cold_start, unchecked, epochs=2)
    assert len(expected) > 2 and len(of_one) > 1
    assert logged["policy/ratio_deviation"] == pytest.approx(expected[0], rel=1e-3)
    assert logged["policy/clipped"] == pytest.approx(1 / len(expected), rel=1e-3)
    assert of_the_second["policy/ratio_deviation"] < 1e-6  # nothing is left of the first
    total, count = map(sum, zip(*of_one, strict=True))
    assert logged["generator/reward"] == pytest.approx(total / count, rel=1e-4)


def test_forward_passes_are_those_of_the_docstring(tmp_path, tiny_folder, cold_start):
    _, logged, counts = run_epochs(tmp_path, tiny_folder, cold_start)
    kept = int(logged["policy/kept_samples"])
    assert 0 < kept <= SAMPLES
    rollout, trained = 4 * SAMPLES, 2 * SAMPLES
    assert counts[GENERATOR] == rollout + trained + kept
    assert counts[FAKE_SCORE] == 3 * SAMPLES + kept
    assert counts[TEACHER] == 2 * kept
    assert counts[COLD_START] == 0


@pytest.mark.parametrize(
    ("options", "generator", "fake_score", "teacher", "reference"),
    [
        (["--model.policy.trained_steps=3"], 4 + 3 + 1, 4, 2, 0),
        (["--model.policy.kl_weight=0.1"], 4 + 2 + 1, 4, 2, 2),
        (["--model.policy.weight=0"], 4 + 1, 4, 2, 0),
        (["--model.final_step.matching_weight=0"], 4 + 2 + 1, 0, 0, 0),
        (["--model.final_step.reward_weight=0"], 4 + 2 + 1, 4, 2, 0),
        (["--model.consistency.weight=0"], 4 + 2 + 1, 2, 2, 0),
        (["--model.final_step.matching_weight=0", "--model.final_step.reward_weight=0"], 4 + 2, 0, 0, 0),
    ],
)
def test_an_ablation_saves_its_passes(
    tmp_path, tiny_folder, cold_start, options, generator, fake_score, teacher, reference
):
    _, logged, counts = run_epochs(tmp_path, tiny_folder, cold_start, *options)
    if logged["policy/kept_samples"] < SAMPLES:
        pytest.fail("the settings of this test should leave no group without advantages")
    expected = {GENERATOR: generator, FAKE_SCORE: fake_score, TEACHER: teacher, COLD_START: reference}
    assert counts == Counter({role: SAMPLES * count for role, count in expected.items()})


def test_without_the_matching_term_there_is_no_fake_score(tmp_path, tiny_folder, cold_start):
    """Neither its role, its optimizer, nor its file: the generator's, alone in its folder, is enough."""
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(cold_start / GENERATOR_FILE, alone)
    with pytest.raises(UserError, match=r"model\.cold_start_fake"):
        tiny_rtdmd_module(tiny_folder, alone)
    module = tiny_rtdmd_module(tiny_folder, alone, final_step=FinalStepSettings(matching_weight=0.0), micro_batches=1)
    train(module)
    assert module.roles.stacks.keys() == {GENERATOR, EMA, COLD_START}
    assert {key.split(".")[-2] for key in module.state_dict()} == {GENERATOR, EMA}
    assert len(module.configure_optimizers()) == 1
    assert not any(FAKE_SCORE in name for name, _ in module.named_parameters())


def test_refused(tmp_path, tiny_folder, cold_start):
    config = str(write_rtdmd_config(tmp_path, tiny_folder, cold_start))
    for option, message in (
        ("--model.policy.trained_steps=4", "trained_steps must lie between 1 and 3"),
        ("--model.policy.steps=[0]", "trained_steps must lie between 1 and 1"),
        ("--model.policy.steps=[0,3]", "stochastic steps [0, 1, 2], not [0, 3]"),
        ("--model.policy.steps=[1,1]", "different ones of the stochastic steps"),
        ("--model={policy: {weight: 0}, final_step: {matching_weight: 0, reward_weight: 0}}", "nothing is trained"),
        ("--model.rewards.back_propagated=[]", "name a differentiable one in model.rewards.back_propagated"),
        ("--model.rewards.back_propagated=[contrast]", "model.rewards.back_propagated names 'contrast'"),
        ("--model.policy={weight: 0, kl_weight: 0.1}", "kl_weight belongs to the policy's steps"),
        ("--model.sampler.eta=0", "no step is stochastic"),
        ("--model.images_per_prompt=3", "16 is no multiple of model.images_per_prompt 3"),
        ("--model.cold_start=/nowhere.pt", "/nowhere.pt does not exist"),
    ):
        with pytest.raises(Exception) as caught:
            fit.main(["--config", config, option])
        error = caught.value
        while error.__cause__ is not None and not isinstance(error, UserError):
            error = error.__cause__
        assert message in str(error)
