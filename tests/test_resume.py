"""Killed and resumed, a run ends where the uninterrupted one ends, to the last bit; and what a checkpoint holds."""

import json
import signal

import pytest
import torch

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks import RewardEvalCallback, export
from rtdmd_lightning.roles.roles import EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.utils.checkpointing import AtomicCheckpointIO
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


@pytest.mark.parametrize("fails", ["evaluate_outside_a_step", "write_adapter"])
def test_a_run_that_failed_after_its_last_update_is_completed_by_a_resume(fails, tiny_folder, tmp_path, monkeypatch):
    """Lightning itself has nothing to do then, and says so."""
    config = ["--config", str(write_config(tmp_path, tiny_folder)), "--trainer.max_steps=3"]
    folder = tmp_path / "runs/run"

    def fail(*arguments, **options):
        raise InterruptedError

    monkeypatch.setattr(RewardEvalCallback if fails.startswith("evaluate") else export, fails, fail)
    with pytest.raises(InterruptedError):
        fit.main(config)
    assert not (folder / "cold_start").exists()
    (folder / ".partial-killed/new").mkdir(parents=True)
    (folder / "checkpoints/last.ckpt.partial").write_text("half")
    monkeypatch.undo()
    for _ in range(2):  # the second time nothing is missing
        module = fit.main([*config, "--ckpt_path=last"]).model
        assert [json.loads(row)["step"] for row in (folder / "eval.jsonl").read_text().splitlines()] == [2, 3]
        result = torch.load(folder / "cold_start/generator_ema.pt", weights_only=True)
        expected = module.roles.own_state_dict(EMA)
        assert_identical(dict(result), {key.replace(f".{EMA}.", ".default."): expected[key] for key in expected})
        names = {"generator_ema.pt", "fake_score.pt", "pytorch_lora_weights.safetensors"}
        assert {path.name for path in (folder / "cold_start").iterdir()} == names
    assert not [path for path in folder.rglob("*") if "partial" in path.name]


def test_a_checkpoint_that_is_half_written_leaves_the_previous_one(tmp_path, monkeypatch):
    writer, path = AtomicCheckpointIO(), tmp_path / "checkpoints/last.ckpt"
    writer.save_checkpoint({"state_dict": {"x": torch.ones(3)}}, path)
    before = path.read_bytes()

    def half(checkpoint, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        writer.save_checkpoint({"state_dict": {"x": torch.zeros(3)}}, path)
    assert path.read_bytes() == before
    monkeypatch.undo()
    writer.save_checkpoint({"state_dict": {"x": torch.zeros(3)}}, path)
    assert not torch.load(path, weights_only=True)["state_dict"]["x"].any()
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


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
