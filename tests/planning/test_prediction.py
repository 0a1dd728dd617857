"""What is planned against what is measured: the shipped configs of the toy world, through the real trainer, in one process.

Measured are, from the second step on, the tensors that are alive when it begins (Python's garbage collector knows them all) and
every allocation and release that torch's CPU allocator reports to the profiler while it runs. Neither is seen by the plan.
"""

import gc
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from lightning import Callback
from torch.profiler import ProfilerActivity, profile

from rtdmd_lightning import fit, plan
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning import tables
from rtdmd_lightning.planning.estimate import MOMENTS
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR
from tests.support.tiny import REPOSITORY

pytestmark = pytest.mark.slow

TOLERANCE = 0.15
WHOLE = "--config=configs/parts/full.yaml"
QUIET = [
    "--trainer.max_steps=2",
    "--callbacks={}",
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_checkpointing=false",
]


def alive() -> int:
    """Bytes of all tensors' storages, each once."""
    gc.collect()
    plain = [found for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)]
    tensors = [
        found for found in plain if found.layout == torch.strided and not found.is_nested
    ]  # other tests leave others
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


class PeakOfSecondStep(Callback):
    """The most bytes at any moment of the second step, optimizer states included, less those that were there before."""

    def __init__(self) -> None:
        self.before = alive()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 1:
            self.begun = alive() - self.before
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profiler.start()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == 1:
            self.profiler.stop()
            events = [event for event in self.profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
            changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
            self.bytes = self.begun + max(accumulate(changes))


def measure(arguments: list[str], folder: Path) -> tuple[int, FewStepModule]:
    """The peak, and the module of the finished run, which leaves its config in the folder."""
    meter = PeakOfSecondStep()
    run = fit.parse([*arguments, *QUIET, f"--run_dir={folder}"])
    run.trainer.callbacks.append(meter)
    run.trainer.fit(run.model, run.datamodule)
    return meter.bytes, run.model


def weight(parameters) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=configs/cold_start/tiny_sd3.yaml", "--model.batch_size=8"],
        ["--config=configs/rtdmd/tiny_sd3.yaml", "--model.micro_batches=1", "--model.batch_size=16"],
        ["--config=configs/cold_start/tiny_sd3.yaml", "--model.batch_size=16", "--model.micro_batch_size=4"],
        [
            "--config=configs/rtdmd/tiny_sd3.yaml",
            "--model.micro_batches=1",
            "--model.batch_size=32",
            "--model.micro_batch_size=8",
        ],
        ["--config=configs/cold_start/tiny_sd3.yaml", "--model.batch_size=8", "--model.backbone.quantization=int8"],
        [
            "--config=configs/rtdmd/tiny_sd3.yaml",
            "--model.micro_batches=1",
            "--model.batch_size=16",
            "--model.micro_batch_size=8",
            "--model.backbone.quantization=nf4",
        ],
        ["--config=configs/cold_start/tiny_sd3.yaml", WHOLE, "--model.batch_size=8"],
        [
            "--config=configs/rtdmd/tiny_sd3.yaml",
            WHOLE,
            "--model.micro_batches=1",
            "--model.batch_size=16",
            "--model.cold_start=checkpoints/tiny-sd3",
            "--model.cold_start_fake=checkpoints/tiny-sd3",
        ],
    ],
    ids=[
        "cold_start",
        "rtdmd",
        "cold_start in micro-batches",
        "rtdmd in micro-batches",
        "cold_start in int8",
        "rtdmd in nf4 and micro-batches",
        "cold_start of whole transformers",
        "rtdmd of whole transformers",
    ],
)
def test_parts_are_the_real_ones_and_the_peak_is_within_15_percent(arguments, monkeypatch, tmp_path):
    """The plan sees two and three of the four equal blocks, the run all of them. Only a GPU keeps embeddings."""
    monkeypatch.chdir(REPOSITORY)
    arguments = [*arguments, "--model.backbone.embeddings_on_device=0"]
    measured, module = measure(arguments, tmp_path)
    columns, processes = plan.plan(arguments)
    estimate = columns[tables.UNCHECKPOINTED]

    trained = weight([*module.roles.parameters_of(GENERATOR), *module.roles.parameters_of(FAKE_SCORE)])
    weights = [named for base in module.roles.bases for named in base.named_parameters()]
    adapters = weight(parameter for path, parameter in weights if ".lora_" in path)
    of_a_role = weight(module.roles.parameters_of(GENERATOR))
    pipeline = module.backbone.loaded
    assert processes == 1
    assert estimate.base == weight(parameter for _, parameter in weights) - adapters
    assert (estimate.gradients, estimate.optimizer) == (of_a_role, MOMENTS * trained)
    # A cold start is planned as if it had the shape of the new adapters, whatever the shape of the one that there is.
    count = 0 if WHOLE in arguments else 3 + len(module.frozen_adapters())
    assert estimate.adapters == count * of_a_role
    assert estimate.vae == weight(pipeline.vae.parameters())
    assert estimate.text_encoders == weight(
        [*pipeline.text_encoder.parameters(), *pipeline.text_encoder_2.parameters()]
    )
    assert 0 < columns[tables.DDP].activations < estimate.activations
    print(f"predicted {estimate.total / 2**20:.1f} MiB, measured {measured / 2**20:.1f} MiB")
    assert abs(estimate.total / measured - 1) < TOLERANCE
