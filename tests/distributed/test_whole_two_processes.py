"""Whole transformers on one process and on two: DDP and FSDP2."""

import json

import pytest
import torch

from rtdmd_lightning import fit
from tests.support.tiny import STRATEGIES, load_checkpoint, write_config

OPTIONS = {"trainable": "full", "checkpoint_every": 2}


@pytest.fixture(scope="module")
def single(tiny_folder, tmp_path_factory):
    """Six cycles, with a checkpoint and an evaluation after every second one."""
    folder = tmp_path_factory.mktemp("single")
    fit.main(["--config", str(write_config(folder, tiny_folder, **OPTIONS)), "--trainer.max_steps=6"])
    return folder


def assert_state_is_that_of(single, state, step):
    (path,) = (single / "runs/run/checkpoints").glob(f"*step={step}.ckpt")
    expected = torch.load(path, weights_only=True)["state_dict"]
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-5, msg=key)


def scores_of(folder, last):
    rows = [json.loads(line) for line in (folder / "runs/run/eval.jsonl").read_text().splitlines()]
    told = {(row["step"], key): value for row in rows for key, value in row.items() if key.startswith("eval/")}
    return {key: value for key, value in told.items() if key[0] <= last}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_make_the_single_process_run_and_one_goes_on_from_their_checkpoint(
    strategy, pair, single, tiny_folder, tmp_path
):
    """Two evaluations: the second one draws with an average that has moved since the first."""
    pair.fit(
        "--config", str(write_config(tmp_path, tiny_folder, **OPTIONS)), "--trainer.max_steps=4", *STRATEGIES[strategy]
    )
    assert_state_is_that_of(single, load_checkpoint(tmp_path)["state_dict"], 4)
    assert len(scores_of(single, 4)) >= 2
    assert scores_of(tmp_path, 4) == pytest.approx(scores_of(single, 4), abs=1e-4)

    last, resumed = tmp_path / "runs/run/checkpoints/last.ckpt", tmp_path / "resumed"
    config = str(write_config(resumed, tiny_folder, **OPTIONS))
    fit.main(["--config", config, "--trainer.max_steps=6", f"--ckpt_path={last}"])
    assert_state_is_that_of(single, load_checkpoint(resumed)["state_dict"], 6)
