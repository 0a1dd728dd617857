"""Stage 2 on one process and on two: the same epoch, and one synchronisation of gradients per optimizer step."""

import json
from itertools import product

import pytest
import torch

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks.alarm import CHECKPOINT
from rtdmd_lightning.data.prompts import load_prompts
from rtdmd_lightning.data.stream import PromptStream
from tests.support.held_out import PROMPTS
from tests.support.tiny import STRATEGIES, load_checkpoint
from tests.support.tiny_rtdmd import save_cold_start, write_rtdmd_config

BLOCKS = 3  # of the tiny transformer
SCRIPTED = {
    "class_path": "tests.support.held_out.Scripted",
    "init_args": {
        "prompts": PROMPTS,
        "rewards": [{"class_path": "tests.support.held_out.Length"}],
        "every_n_updates": 1,
        "grid": 2,
        "at_start": True,
    },
}
ALARM = {"class_path": "rtdmd_lightning.callbacks.RewardHackingAlarm", "init_args": {"stop": True}}


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


@pytest.fixture(scope="module")
def single(tiny_folder, cold_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    fit.main(["--config", str(write_rtdmd_config(folder, tiny_folder, cold_start))])
    return folder


@pytest.mark.parametrize(
    ("strategy", "syncs", "micro_batch_size"),
    [("ddp", 2, None), ("ddp", 2, 1), ("fsdp2", 2 * (BLOCKS + 1), None), ("fsdp2", 2 * (BLOCKS + 1), 1)],
)
def test_two_processes_make_the_single_process_epochs(
    strategy, syncs, micro_batch_size, pair, single, tiny_folder, cold_start, tmp_path
):
    options = {"checkpoint_every": 2, "micro_batch_size": micro_batch_size}
    config = str(write_rtdmd_config(tmp_path, tiny_folder, cold_start, **options))
    counting = [
        "--callbacks.count=tests.support.count_syncs.CountSyncs",
        f"--callbacks.count.path={tmp_path / 'syncs.json'}",
    ]
    pair.fit("--config", config, *STRATEGIES[strategy], *counting)
    one, two = load_checkpoint(single)["state_dict"], load_checkpoint(tmp_path)["state_dict"]
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=key)
    moved = [key for key, value in one.items() if ".generator." in key and "lora_B" in key and value.abs().max() > 1e-4]
    assert moved
    # One update of the fake score and one of the generator, over four micro-batches or eight, of up to three backward passes
    # each; FSDP2 reduces every block and the rest of the transformer apart.
    assert json.loads((tmp_path / "syncs.json").read_text())[strategy] == syncs


# Two groups of two images in a micro-batch, one a process; a prompt without a circle gives its group no advantage. The last
# step, whose samples are left out then, has weights that make it felt.
SOME_ADVANTAGES = {
    "images_per_prompt": 2,
    "rewards": {
        "rewards": [{"class_path": "tests.support.tiny_rtdmd.RednessOfCircles"}],
        "weights": {"redness_of_circles": 1.0},
        "back_propagated": ["redness_of_circles"],
    },
    "final_step": {"matching_weight": 1.0, "reward_weight": 10.0},
}


@pytest.fixture(scope="module")
def single_of_some(tiny_folder, cold_start, tmp_path_factory):
    """Two epochs of four micro-batches in which both processes would have advantages, or either alone, or none."""
    stream = PromptStream(load_prompts("shapes:train"), seed=0, repeats=2)
    circles = ["circle" in stream[position][1]["prompt"] for position in range(0, 32, 2)]
    assert set(zip(circles[0::2], circles[1::2], strict=True)) == set(product([False, True], repeat=2))
    folder = tmp_path_factory.mktemp("single_of_some")
    run = fit.main(["--config", str(write_rtdmd_config(folder, tiny_folder, cold_start, **SOME_ADVANTAGES))])
    assert run.trainer.callback_metrics["policy/kept_samples"] == 2 * sum(circles[8:])
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_samples_without_an_advantage_count_for_nothing_wherever_they_are(
    strategy, pair, single_of_some, tiny_folder, cold_start, tmp_path
):
    """A process that has none while the other does goes along, or the other would hang, and adds nothing."""
    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start, checkpoint_every=2, **SOME_ADVANTAGES)
    pair.fit("--config", str(config), *STRATEGIES[strategy])
    one, two = load_checkpoint(single_of_some)["state_dict"], load_checkpoint(tmp_path)["state_dict"]
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=key)
    moved = [value.abs().max() for key, value in one.items() if ".generator." in key and "lora_B" in key]
    assert max(moved) > 3e-3  # of an adapter that starts at zero


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_alarm_stops_both_processes_at_the_same_step_with_their_state_kept(
    strategy, pair, tiny_folder, cold_start, tmp_path
):
    """The scripted reward falls at step 2 of 4. A rank that went on alone would hang in the next collective."""
    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start, callbacks={"evaluation": SCRIPTED, "alarm": ALARM})
    pair.fit("--config", str(config), "--trainer.max_steps=4", *STRATEGIES[strategy])
    rows = (tmp_path / "runs/run/eval.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2]
    state = torch.load(tmp_path / "runs/run/checkpoints" / CHECKPOINT, weights_only=True)
    assert state["global_step"] == 2
    assert any(value.any() for key, value in state["state_dict"].items() if ".generator." in key and "lora_B" in key)
