"""The same run on one process and on two: DDP and FSDP2, on the CPU through gloo."""

import json

import pytest
import torch

from rtdmd_lightning import fit
from tests.support.tiny import STRATEGIES, load_checkpoint, write_config


@pytest.fixture(scope="module")
def single(tiny_folder, tmp_path_factory):
    """Three cycles (two fake-score updates and a generator update each) in one process, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("single")
    fit.main(["--config", str(write_config(folder, tiny_folder)), "--trainer.max_steps=3"])
    return folder


@pytest.fixture(scope="module")
def initial(tiny_folder, tmp_path_factory):
    """The state before the first cycle."""
    module = fit.parse(["--config", str(write_config(tmp_path_factory.mktemp("initial"), tiny_folder))]).model
    module.configure_model()
    return module.state_dict()


def state_after(folder, step):
    (path,) = (folder / "runs/run/checkpoints").glob(f"*step={step}.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def scores_after(folder, step):
    rows = [json.loads(line) for line in (folder / "runs/run/eval.jsonl").read_text().splitlines()]
    (row,) = (row for row in rows if row["step"] == step)
    return {key: value for key, value in row.items() if key.startswith("eval/")}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5, msg=key)


# Two replicas of one shard, whose gradients meet in the other dimension of the mesh; and the options that change no number.
HYBRID = ["shard_size=1", "replicate_size=2", "reshard_after_forward=false", "prefetch=2"]
SPREAD = STRATEGIES | {"hybrid": [*STRATEGIES["fsdp2"], *(f"--trainer.strategy.{option}" for option in HYBRID)]}


@pytest.mark.parametrize("strategy", SPREAD)
def test_two_processes_make_the_single_process_update_and_a_checkpoint_that_one_process_loads(
    strategy, pair, single, initial, tiny_folder, tmp_path
):
    config = str(write_config(tmp_path, tiny_folder, checkpoint_every=2))
    pair.fit("--config", config, *SPREAD[strategy])
    expected = state_after(single, 2)
    assert_same(load_checkpoint(tmp_path)["state_dict"], expected)
    for role in (".generator.", ".fake_score.", ".generator_ema."):
        moved = max((value - initial[key]).abs().max() for key, value in expected.items() if role in key)
        assert moved > 3e-5, role  # well beyond the tolerance above; the EMA moves least
    assert scores_after(tmp_path, 2) == pytest.approx(scores_after(single, 2), abs=1e-4)

    # One process goes on from it, and arrives where the single process that never changed strategy arrives.
    last, resumed = tmp_path / "runs/run/checkpoints/last.ckpt", tmp_path / "resumed"
    config = str(write_config(resumed, tiny_folder))
    fit.main(["--config", config, "--trainer.max_steps=3", f"--ckpt_path={last}"])
    assert_same(load_checkpoint(resumed)["state_dict"], state_after(single, 3))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_micro_batches_of_two_processes_are_four_of_one(strategy, pair, single, tiny_folder, tmp_path):
    """And both are the whole batch in one pass."""
    alone = tmp_path / "alone"
    config = str(write_config(alone, tiny_folder, checkpoint_every=2, micro_batch_size=1))
    fit.main(["--config", config])
    config = str(write_config(tmp_path / "together", tiny_folder, checkpoint_every=2, micro_batch_size=1))
    pair.fit("--config", config, *STRATEGIES[strategy])
    four = load_checkpoint(alone)["state_dict"]
    assert_same(load_checkpoint(tmp_path / "together")["state_dict"], four)
    assert_same(four, state_after(single, 2))


def test_an_unsharded_checkpoint_is_refused_under_fsdp2(pair, single, tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder))
    last = single / "runs/run/checkpoints/last.ckpt"
    for refusal in pair.refusals("--config", config, f"--ckpt_path={last}", *STRATEGIES["fsdp2"]):
        assert "was saved without FSDP2" in refusal


def test_a_batch_that_does_not_divide_is_refused_with_the_arithmetic(pair, tiny_folder, tmp_path):
    config = str(write_config(tmp_path, tiny_folder, batch_size=3))
    for refusal in pair.refusals("--config", config, *STRATEGIES["ddp"]):
        assert "3 / 2 = 1.50 samples per process" in refusal
