"""The first ratio of a run where passes with gradient round otherwise than those without: told, stopped, or avoided."""

import warnings

import pytest
import torch

from rtdmd_lightning import fit
from rtdmd_lightning.losses import PolicySettings
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.modules.notes import RATIO_DEVIATION, Notes
from rtdmd_lightning.modules.ratio import FirstRatio
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import STRATEGIES
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

CLIP_RANGE = 1e-5
OTHER_ATTENTION = "--callbacks.other=tests.support.other_attention.OtherAttention"


def noted(*deviations: float) -> Notes:
    notes = Notes()
    notes.largest(RATIO_DEVIATION, torch.tensor(deviations))
    return notes


def alone(values):
    return values


def test_the_largest_deviation_of_all_processes_counts():
    other = torch.tensor([3e-5])
    FirstRatio(PolicySettings())(noted(2e-6, 9e-6), alone)
    with pytest.raises(UserError, match=r"by up to 3\.0e-05.*old_log_prob.*ratio_check"):
        FirstRatio(PolicySettings())(noted(2e-6, 9e-6), lambda values: torch.cat([values, other]))


@pytest.mark.parametrize("clip_range", [1e-5, 1e-3])
def test_beyond_the_clip_range_is_beyond_it_by_anything(clip_range):
    FirstRatio(PolicySettings(clip_range=clip_range))(noted(0.99 * clip_range), alone)
    with pytest.raises(UserError, match="clip_range"):
        FirstRatio(PolicySettings(clip_range=clip_range))(noted(1.01 * clip_range), alone)


def test_only_the_first_update_is_looked_at():
    """Of an algorithm with several updates on its rollouts the later ones have other ratios on purpose."""
    check = FirstRatio(PolicySettings())
    check(noted(0.0), alone)
    check(noted(1.0), alone)


def test_a_warning_or_nothing_by_option():
    with pytest.warns(UserWarning, match="old_log_prob=update"):
        FirstRatio(PolicySettings(ratio_check="warn"))(noted(1.0), alone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FirstRatio(PolicySettings(ratio_check="off"))(noted(1.0), alone)
        FirstRatio(PolicySettings())(Notes(), alone)  # no policy is trained


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


def run(tmp_path, tiny_folder, cold_start, *options):
    """One epoch, with kernels that differ with gradient."""
    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start)
    return fit.main(["--config", str(config), "--trainer.max_steps=1", OTHER_ATTENTION, *options])


@pytest.mark.slow
def test_a_run_whose_kernels_differ_with_gradient_stops_before_its_generator_moves(
    tmp_path, tiny_folder, cold_start, monkeypatch
):
    modules = []
    build = RTDMDModule.build_losses
    monkeypatch.setattr(RTDMDModule, "build_losses", lambda self: (build(self), modules.append(self)))
    with pytest.raises(UserError, match="old_log_prob"):
        run(tmp_path, tiny_folder, cold_start)
    up = [p for path, p in modules[0].roles.named_parameters() if ".generator." in path and "lora_B" in path]
    assert up and not any(parameter.any() for parameter in up)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--model.shuffle=true"]])
def test_with_the_updates_own_log_probabilities_it_starts_at_one(tmp_path, tiny_folder, cold_start, options):
    ran = run(tmp_path, tiny_folder, cold_start, "--model.policy.old_log_prob=update", *options)
    logged = ran.trainer.callback_metrics
    assert logged["policy/ratio_deviation"] == 0 and logged["policy/clipped"] == 0
    assert logged["policy/rollout_deviation"] > CLIP_RANGE  # what it would have been


@pytest.mark.slow
def test_compiled_blocks_take_the_updates_own(tmp_path, tiny_folder, cold_start, monkeypatch):
    monkeypatch.setattr(
        "rtdmd_lightning.modules.training.compile_blocks", lambda *_: None
    )  # their kernels are the patch's
    assert (
        run(tmp_path, tiny_folder, cold_start, "--model.compile=blocks").trainer.callback_metrics[
            "policy/ratio_deviation"
        ]
        == 0
    )


def test_two_processes_stop_for_what_one_of_them_sees_also_after_a_resumption(tmp_path, tiny_folder, cold_start, pair):
    options = ["--config", str(write_rtdmd_config(tmp_path, tiny_folder, cold_start)), *STRATEGIES["ddp"]]
    pair.fit(*options, "--trainer.max_steps=1")
    told = pair.refusals(*options, "--ckpt_path=last", OTHER_ATTENTION, "--callbacks.other.rank=1")
    assert all("model.policy.old_log_prob" in failure for failure in told)
