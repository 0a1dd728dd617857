"""The same run on one process and on two: DDP and FSDP2, on the CPU through gloo."""

import json

import pytest
import torch

from tests.tiny import STRATEGIES, load_checkpoint, run, write_config


@pytest.fixture(scope="module")
def single(tiny_folder, tmp_path_factory):
    """Two cycles (two fake-score updates and a generator update each) in one process."""
    folder = tmp_path_factory.mktemp("single")
    run("--config", str(write_config(folder, tiny_folder)), timeout=200)
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder / "runs/run/eval.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_make_the_single_process_update_and_a_checkpoint_that_one_process_loads(
    strategy, single, tiny_folder, tmp_path
):
    config = str(write_config(tmp_path, tiny_folder))
    run("--config", config, "--trainer.devices=2", *STRATEGIES[strategy], processes=2, timeout=200)
    one, two = load_checkpoint(single), load_checkpoint(tmp_path)
    initial = load_initial(tiny_folder, tmp_path)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][key], value, rtol=0, atol=1e-5, msg=key)
    for role in (".generator.", ".fake_score.", ".generator_ema."):
        moved = max((value - initial[key]).abs().max() for key, value in one["state_dict"].items() if role in key)
        assert moved > 3e-5, role  # well beyond the tolerance above; the EMA moves least
    scores = [{k: v for k, v in rows(folder)[-1].items() if k.startswith("eval/")} for folder in (single, tmp_path)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)

    # One process goes on from it, and arrives where a single process that never changed strategy arrives.
    last = tmp_path / "runs/run/checkpoints/last.ckpt"
    run("--config", config, "--trainer.max_steps=3", f"--ckpt_path={last}", timeout=200)
    straight = tmp_path / "straight"
    run("--config", str(write_config(straight, tiny_folder)), "--trainer.max_steps=3", timeout=200)
    resumed, expected = load_checkpoint(tmp_path), load_checkpoint(straight)
    for key, value in expected["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], value, rtol=0, atol=1e-5, msg=key)


def load_initial(tiny_folder, tmp_path):
    folder = tmp_path / "initial"
    config = str(write_config(folder, tiny_folder))
    frozen = ["--model.generator_optimizer.learning_rate=0", "--model.fake_optimizer.learning_rate=0"]
    run("--config", config, "--trainer.max_steps=1", *frozen, timeout=200)
    return load_checkpoint(folder)["state_dict"]


def test_an_unsharded_checkpoint_is_refused_under_fsdp2(single, tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    last = single / "runs/run/checkpoints/last.ckpt"
    finished = run(
        "--config", config, "--trainer.max_steps=3", "--trainer.devices=2", f"--ckpt_path={last}",
        *STRATEGIES["fsdp2"], processes=2, check=False, timeout=200,
    )  # fmt: skip
    assert finished.returncode != 0
    assert "cannot be resumed under ModelParallelStrategy" in finished.stderr


def test_a_batch_that_does_not_divide_is_refused_with_the_arithmetic(tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder, batch_size=3))
    finished = run("--config", config, "--trainer.devices=2", *STRATEGIES["ddp"], processes=2, check=False, timeout=200)
    assert finished.returncode != 0
    assert "3 / 2 = 1.50 samples per process" in finished.stderr
