"""A run that a signal ends: what it leaves, what its status says, and that all of its processes end."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from rtdmd_lightning import fit
from tests.support.runs import assert_identical
from tests.support.tiny import REPOSITORY, STRATEGIES, load_checkpoint, run, write_config

pytestmark = pytest.mark.slow

SIGNAL = "--callbacks.signal=tests.support.tiny.SignalDuringStep"
NEVER = {"checkpoint_every": 100}  # no checkpoint but the interruption's


def steps_evaluated(folder):
    return [line.partition(",")[0] for line in (folder / "runs/run/eval.jsonl").read_text().splitlines()]


def under_torchrun(*arguments):
    """`fit ARGUMENTS` as two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*torchrun, "-m", "rtdmd_lightning.fit", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,  # for the imports, three times; a process that hangs does so for half an hour
    )


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_it_ends_after_the_update_and_goes_on_bit_for_bit(name, status, tiny_folder, tmp_path):
    config, whole = write_config(tmp_path / "ended", tiny_folder, **NEVER), tmp_path / "whole"
    arguments = ("--config", str(config), "--trainer.max_steps=4")
    ended = run(*arguments, SIGNAL, "--callbacks.signal.step=1", f"--callbacks.signal.name={name}", check=False)
    assert ended.returncode == status
    assert "Traceback" not in ended.stderr and "--ckpt_path=last" in ended.stderr
    assert load_checkpoint(tmp_path / "ended")["global_step"] == 2
    assert steps_evaluated(tmp_path / "ended") == ['{"step": 2']  # of that update, before the state was saved
    assert not (tmp_path / "ended/runs/run/cold_start").exists()

    fit.main([*arguments, "--ckpt_path=last", "--callbacks.last.every_n_train_steps=1"])
    fit.main(["--config", str(write_config(whole, tiny_folder)), "--trainer.max_steps=4"])
    one, other = load_checkpoint(whole), load_checkpoint(tmp_path / "ended")
    for part in ("global_step", "state_dict", "optimizer_states"):
        assert_identical(one[part], other[part])


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_before_the_training_it_ends_at_once(name, status, tiny_folder, tmp_path):
    config = ("--config", str(write_config(tmp_path, tiny_folder)))
    loading = ["--callbacks.signal=tests.support.tiny.SignalBeforeTraining", f"--callbacks.signal.name={name}"]
    ended = run(*config, *loading, check=False)
    assert ended.returncode == status
    assert f"{name}: the run ends at once" in ended.stderr
    assert "Traceback" not in ended.stderr and "graceful" not in ended.stderr


def test_so_do_two_processes_when_one_of_them_is_told_between_loading_and_training(tiny_folder, tmp_path):
    """Lightning's own handler waits there for what the other process never sends."""
    before = ["--callbacks.signal=tests.support.tiny.SignalBeforeTraining", "--callbacks.signal.name=SIGTERM"]
    options = [*STRATEGIES["ddp"], "--trainer.devices=2", "--callbacks.signal.rank=1", "--callbacks.signal.loaded=true"]
    ended = under_torchrun("--config", str(write_config(tmp_path, tiny_folder)), *before, *options)
    assert ended.returncode != 0 and "SIGTERM: the run ends at once" in ended.stderr


@pytest.mark.parametrize(("strategy", "evaluating"), [("ddp", False), ("fsdp2", True)])
def test_all_processes_end_after_the_same_update_whichever_hears_it(strategy, evaluating, tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder, **NEVER))
    heard = [
        SIGNAL,
        "--callbacks.signal.step=1",
        "--callbacks.signal.rank=1",
        f"--callbacks.signal.evaluating={evaluating}",
    ]
    training = ["--config", config, "--trainer.max_steps=50", "--trainer.devices=2", *STRATEGIES[strategy], *heard]
    ended = under_torchrun(*training)
    assert ended.returncode != 0
    assert "SIGTERM: the run has ended after update 3" in ended.stderr  # heard in the second, obeyed after the next
    assert load_checkpoint(tmp_path)["global_step"] == 3
    assert "is abandoned" not in ended.stderr


def test_slurms_signal_requeues_the_job_after_the_update_with_the_state_saved(tiny_folder, tmp_path, monkeypatch):
    """By Lightning; the rest of the job's time is used."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    last = tmp_path / "runs/run/checkpoints/last.ckpt"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\ncp {last} {tmp_path}/then.ckpt\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    job = {"SLURM_NTASKS": 1, "SLURM_JOB_ID": 17, "SLURM_JOB_NAME": "rtdmd", "SLURM_PROCID": 0, "SLURM_LOCALID": 0}
    for name, value in (job | {"SLURM_NODEID": 0, "SLURM_NTASKS_PER_NODE": 1}).items():
        monkeypatch.setenv(name, str(value))
    config = str(write_config(tmp_path, tiny_folder, **NEVER))
    told = [SIGNAL, "--callbacks.signal.step=1", "--callbacks.signal.name=SIGUSR1"]
    run("--config", config, "--trainer.max_steps=3", *told)
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    assert torch.load(tmp_path / "then.ckpt", weights_only=True)["global_step"] == 2


def test_before_the_training_begins_signals_do_what_they_did(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    fit.main(["--config", config, "--trainer.max_steps=1"])
    assert {one: signal.getsignal(one) for one in before} == before
