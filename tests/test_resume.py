"""Killed and resumed, a run ends where the uninterrupted one ends, to the last bit; and what a checkpoint holds."""

import signal

import pytest
import torch

from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from tests.support.runs import assert_identical
from tests.support.tiny import load_checkpoint, run, write_config
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

pytestmark = pytest.mark.slow


def test_sigkill_in_the_middle_of_a_step_then_resume_is_bit_identical(tiny_folder, tmp_path):
    whole = write_config(tmp_path / "whole", tiny_folder)
    run("--config", str(whole), "--trainer.max_steps=4")

    killed = write_config(tmp_path / "killed", tiny_folder)
    arguments = ("--config", str(killed), "--trainer.max_steps=4")
    dead = run(*arguments, "--callbacks.kill=tests.support.tiny.KillDuringStep", "--callbacks.kill.step=2", check=False)
    assert dead.returncode == -signal.SIGKILL
    last = tmp_path / "killed/runs/run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    run(*arguments, f"--ckpt_path={last}")

    one, other = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "killed")
    assert one["global_step"] == other["global_step"] == 4
    assert_identical(one["state_dict"], other["state_dict"])
    assert_identical(one["optimizer_states"], other["optimizer_states"])
    results = [tmp_path / name / "runs/run/cold_start/generator_ema.pt" for name in ("whole", "killed")]
    assert_identical(*(torch.load(path, weights_only=True) for path in results))


def test_an_epoch_of_stage_2_killed_and_resumed_is_bit_identical(tiny_folder, tmp_path):
    cold_start = save_cold_start(tiny_folder, tmp_path / "cold_start")
    whole = write_rtdmd_config(tmp_path / "whole", tiny_folder, cold_start)
    run("--config", str(whole))
    killed = write_rtdmd_config(tmp_path / "killed", tiny_folder, cold_start)
    kill = ("--callbacks.kill=tests.support.tiny.KillDuringStep", "--callbacks.kill.step=1")
    assert run("--config", str(killed), *kill, check=False).returncode == -signal.SIGKILL
    run("--config", str(killed), f"--ckpt_path={tmp_path / 'killed/runs/run/checkpoints/last.ckpt'}")

    one, other = load_checkpoint(tmp_path / "whole"), load_checkpoint(tmp_path / "killed")
    assert one["global_step"] == other["global_step"] == 2
    assert_identical(one["state_dict"], other["state_dict"])
    assert_identical(one["optimizer_states"], other["optimizer_states"])


@pytest.mark.parametrize(
    "options", [["--trainer.precision=bf16-mixed"], ["--model.backbone.gradient_checkpointing=true"]]
)
def test_a_checkpoint_holds_adapters_and_two_optimizers_and_no_base(tiny_folder, tmp_path, options):
    """Also: bf16-mixed runs, and gradient checkpointing runs."""
    config = write_config(tmp_path, tiny_folder)
    run("--config", str(config), "--trainer.max_steps=1", *options)
    checkpoint = load_checkpoint(tmp_path)
    state = checkpoint["state_dict"]
    assert all(any(f".{role}." in key for role in (GENERATOR, FAKE_SCORE, EMA)) for key in state)
    assert {value.dtype for value in state.values()} == {torch.float32}
    per_role = sum(value.numel() for key, value in state.items() if f".{GENERATOR}." in key)
    assert sum(value.numel() for value in state.values()) == 3 * per_role
    assert len(checkpoint["optimizer_states"]) == 2
    size = (tmp_path / "runs/run/checkpoints/last.ckpt").stat().st_size
    # Three adapters and two moments for each of two optimizers, in float32, and little else.
    assert 4 * 7 * per_role < size < 1.5 * 4 * 7 * per_role + 200_000
