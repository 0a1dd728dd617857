"""The options of the strategies reach what they are for."""

import os
from datetime import timedelta
from unittest import mock

import pytest
import torch

from rtdmd_lightning import fit
from tests.support.tiny import REPOSITORY, STRATEGIES, write_config

PARTS = {
    "ddp": [f"--config={REPOSITORY / 'configs/parts/gpus.yaml'}"],
    "fsdp2": [*STRATEGIES["fsdp2"], "--trainer.strategy.shard_size=1"],
}
ALONE = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", PARTS)
def test_the_time_out_is_the_process_groups(strategy, tiny_folder, tmp_path):
    """Of a run of this process alone, which leaves neither its group nor what Lightning puts into the environment."""
    config = ["--config", str(write_config(tmp_path, tiny_folder)), *PARTS[strategy], *ALONE]
    with mock.patch.dict(os.environ):
        fit.main([*config, "--trainer.max_steps=1", "--callbacks.export=null", "--trainer.strategy.timeout=0:07:00"])
        group = torch.distributed.group.WORLD
        found = group._get_backend(torch.device("cpu")).options._timeout
        torch.distributed.destroy_process_group()
    assert found == timedelta(minutes=7)
