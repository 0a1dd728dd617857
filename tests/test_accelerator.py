"""Which device a process takes, and how processes part."""

import os
import runpy
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from rtdmd_lightning import bench as benchmarks
from rtdmd_lightning import fit
from rtdmd_lightning.utils.processes import (
    closing_process_group,
    of_this_process,
    process_device,
    use_matmul_precision,
)
from tests.support.tiny import REPOSITORY, write_config

# The second process does not wait for its sums, so that many are under way when it has nothing left to do. Without the
# context it aborts: "terminate called without an active exception".
PARTING = """
import time
import torch
import torch.distributed as dist
from rtdmd_lightning.utils.processes import closing_process_group

with closing_process_group():
    dist.init_process_group("gloo")
    for _ in range(200):
        tensor = torch.ones(3)
        tensor.python_attribute = object()
        sum_ = dist.all_reduce(tensor, async_op=True)
        if dist.get_rank() == 0:
            sum_.wait()
            time.sleep(0.002)
"""


def test_the_default_device_is_one_that_works(monkeypatch):
    """torch names an accelerator also where it was built for one that the machine lacks."""
    assert torch.zeros(1, device=process_device(None)).sum() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert process_device("cpu") == torch.device("cpu")
    assert [str(of_this_process(torch.device(name))) for name in ("cpu", "xpu", "xpu:1")] == ["cpu", "xpu:3", "xpu:1"]


def test_float32_products_are_an_accelerators_option(monkeypatch):
    """Nothing changes on a CPU, whose numbers are those of every machine."""
    asked = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    use_matmul_precision("high", torch.device("cpu"))
    assert asked == []
    use_matmul_precision("high", torch.device("cuda", 1))
    use_matmul_precision("highest", torch.device("xpu"))
    assert asked == ["high", "highest"]


@pytest.mark.slow
def test_processes_part_in_peace_whatever_gloo_has_still_to_do(tmp_path):
    script = tmp_path / "parting.py"
    script.write_text(PARTING)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    finished = subprocess.run([*launcher, script], env=environment, text=True, capture_output=True, timeout=600)
    assert finished.returncode == 0, finished.stderr[-3000:]


def test_the_process_group_outlives_an_error(process_group):
    """Leaving it would wait for collectives that the other processes may never join."""
    with pytest.raises(ZeroDivisionError), closing_process_group():
        _ = 1 / 0
    assert dist.is_initialized()


def test_where_there_is_no_process_group_none_is_left():
    with closing_process_group():
        pass
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("command", "options"),
    [(fit, ["--trainer.max_steps=1"]), (benchmarks, ["--warm_up=1", "--repeats=2", "--output=bench.json"])],
)
def test_a_command_that_trains_leaves_the_process_group_when_it_is_done(
    process_group, tiny_folder, tmp_path, monkeypatch, command, options
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", f"--config={write_config(tmp_path, tiny_folder)}", *options])
    runpy.run_path(command.__file__, run_name="__main__")
    assert not dist.is_initialized()
