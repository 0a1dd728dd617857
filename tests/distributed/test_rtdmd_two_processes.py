"""Stage 2 on one process and on two: the same epoch, and one synchronisation of gradients per optimizer step."""

import json
import os
from pathlib import Path

import pytest
import torch
from lightning import Callback
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils._python_dispatch import TorchDispatchMode

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks.alarm import CHECKPOINT
from tests.callbacks.test_reward_eval import PROMPTS
from tests.tiny import STRATEGIES, load_checkpoint
from tests.tiny_rtdmd import save_cold_start, write_rtdmd_config

BLOCKS = 3  # of the tiny transformer
SCRIPTED = {
    "class_path": "tests.callbacks.test_alarm.Scripted",
    "init_args": {
        "prompts": PROMPTS,
        "rewards": [{"class_path": "tests.callbacks.test_reward_eval.Length"}],
        "every_n_updates": 1,
        "grid": 2,
        "at_start": True,
    },
}
ALARM = {"class_path": "rtdmd_lightning.callbacks.RewardHackingAlarm", "init_args": {"stop": True}}


class CountScatters(TorchDispatchMode):
    """Counts the reduce-scatters that FSDP2 calls (CommDebugMode's module tracking breaks inside Lightning's hooks)."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "reduce_scatter" in func.name()
        return func(*args, **(kwargs or {}))


class CountSyncs(Callback):
    """Writes how often gradients were reduced over the ranks in the first epoch: by DDP, and per sharded block by FSDP2."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.count = 0
        self.collectives = CountScatters()

    def on_train_start(self, trainer, pl_module) -> None:
        if isinstance(trainer.strategy.model, torch.nn.parallel.DistributedDataParallel):
            trainer.strategy.model.register_comm_hook(None, self.hook)

    def hook(self, group, bucket):
        self.count += bucket.is_last()
        return allreduce_hook(group, bucket)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.collectives.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.collectives.__exit__(None, None, None)
        if trainer.global_rank == 0 and not os.path.exists(self.path):
            Path(self.path).write_text(json.dumps({"ddp": self.count, "fsdp2": self.collectives.count}))


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


@pytest.fixture(scope="module")
def single(tiny_folder, cold_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    fit.main(["--config", str(write_rtdmd_config(folder, tiny_folder, cold_start))])
    return folder


@pytest.mark.parametrize(("strategy", "syncs"), [("ddp", 2), ("fsdp2", 2 * (BLOCKS + 1))])
def test_two_processes_make_the_single_process_epochs(strategy, syncs, pair, single, tiny_folder, cold_start, tmp_path):
    config = str(write_rtdmd_config(tmp_path, tiny_folder, cold_start, checkpoint_every=2))
    counting = [
        "--trainer.callbacks+=tests.distributed.test_rtdmd_two_processes.CountSyncs",
        f"--trainer.callbacks.path={tmp_path / 'syncs.json'}",
    ]
    pair.fit("--config", config, *STRATEGIES[strategy], *counting)
    one, two = load_checkpoint(single)["state_dict"], load_checkpoint(tmp_path)["state_dict"]
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=key)
    moved = [key for key, value in one.items() if ".generator." in key and "lora_B" in key and value.abs().max() > 1e-4]
    assert moved
    # One update of the fake score and one of the generator, over four micro-batches and up to twelve backward passes each;
    # FSDP2 reduces every block and the rest of the transformer apart.
    assert json.loads((tmp_path / "syncs.json").read_text())[strategy] == syncs


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_alarm_stops_both_processes_at_the_same_step_with_their_state_kept(
    strategy, pair, tiny_folder, cold_start, tmp_path
):
    """The scripted reward falls at step 2 of 4. A rank that went on alone would hang in the next collective."""
    config = write_rtdmd_config(tmp_path, tiny_folder, cold_start, callbacks=[SCRIPTED, ALARM])
    pair.fit("--config", str(config), "--trainer.max_steps=4", *STRATEGIES[strategy])
    rows = (tmp_path / "runs/run/eval.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [0, 1, 2]
    state = torch.load(tmp_path / "runs/run/checkpoints" / CHECKPOINT, weights_only=True)
    assert state["global_step"] == 2
    assert any(value.any() for key, value in state["state_dict"].items() if ".generator." in key and "lora_B" in key)
