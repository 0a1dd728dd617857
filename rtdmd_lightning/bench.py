"""How fast and how large a run is: `rtdmd bench [--config X] [--options=[…]]` (`make bench`).

Trains a few real steps of a config through the real trainer and reads the run's own `time/…` logs, then draws batches with the
few-step student. Evaluation, checkpoints and loggers are off. On a CPU memory is the process's high-water mark, which counts
whatever the process did before: this wants a process of its own.

`rtdmd bench --gpu [--minutes 9]` measures everything on an accelerator, without weights: see
`benchmarking/README.md`.
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("bench")

import json
import platform
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback

from rtdmd_lightning import fit
from rtdmd_lightning.benchmarking.counts import print_counts
from rtdmd_lightning.benchmarking.gpu import look
from rtdmd_lightning.benchmarking.stopwatch import Stopwatch, Timing, sampling_seconds
from rtdmd_lightning.modules import ACDMDModule
from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.processes import closing_process_group

GPU, COUNTS = "--gpu", "--counts"
MIB = 2**20
RSS_UNIT = 1 if platform.system() == "Darwin" else 1024  # getrusage counts in KiB, on macOS in bytes


def peak_memory(device: torch.device) -> float:
    """MiB: the peak resident set of this process on a CPU, else the peak of the accelerator's allocator."""
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / MIB


def measure(config: Path, options: list[str], warm_up: int, repeats: int) -> dict:
    """Timings in seconds, memory in MiB, and what they were measured on."""
    imported = peak_memory(torch.device("cpu"))
    with fit.bare_run(config, [*options, "--trainer.enable_progress_bar=false"], warm_up + repeats) as run:
        module, stopwatch = run.model, Stopwatch(warm_up)
        if not isinstance(module, ACDMDModule):
            raise UserError(f"{config} is not a cold start; this measures ACDMDModule, not {type(module).__name__}")
        at_the_end: dict[str, Any] = {}

        def measure_the_rest(trainer: Trainer, trained: LightningModule) -> None:
            """While the module is on its device: when `fit` returns it has been moved to the CPU, without its autoencoder."""
            prompts = stopwatch.prompts[: module.batch_size // trainer.world_size]
            at_the_end.update(device=module.device, memory=peak_memory(module.device), prompts=len(prompts))
            at_the_end["sampling"] = Timing.of(sampling_seconds(module, prompts, warm_up, repeats))

        callbacks = [stopwatch, LambdaCallback(on_train_end=measure_the_rest)]
        run.trainer.callbacks += callbacks  # type: ignore[attr-defined] # Lightning sets it from elsewhere
        run.trainer.fit(module, run.datamodule)
    seconds, device, sampling = stopwatch.seconds, at_the_end["device"], at_the_end["sampling"]
    timings = {"training_step": Timing.of(seconds["training_step"])}
    if "rollout" in seconds:
        timings["rollout"] = Timing.of(seconds["rollout"])
    timings["fake_score_update"] = Timing.of(seconds["fake_updates"], parts=module.fake_update_ratio)
    timings["generator_update"] = Timing.of(seconds["generator_update"])
    timings["sampling"] = sampling
    return {
        "config": str(config),
        "options": options,
        "machine": machine(device),
        "warm_up": warm_up,
        "repeats": repeats,
        "batch_size": module.batch_size,
        "fake_update_ratio": module.fake_update_ratio,
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "images_per_second": at_the_end["prompts"] / sampling.median,
        "peak_memory": {
            "training": at_the_end["memory"],
            "method": memory_method(device),
            "process_after_imports": imported,
        },
    }


def machine(device: torch.device) -> dict:
    name = platform.processor() or platform.machine()
    return {"device": str(device), "processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def memory_method(device: torch.device) -> str:
    if device.type != "cpu":
        return "peak of the accelerator's allocator (torch.accelerator.max_memory_allocated)"
    return "peak resident set of the process, libraries included (getrusage, ru_maxrss)"


def markdown_table(results: dict) -> str:
    """Timings with their spread, then memory and throughput in a sentence each."""
    batch, ratio, memory = results["batch_size"], results["fake_update_ratio"], results["peak_memory"]
    titles = {
        "training_step": f"training step ({ratio} fake-score updates, one generator update)",
        "rollout": "its rollouts, without gradient",
        "fake_score_update": "one fake-score update",
        "generator_update": "one generator update",
        "sampling": "drawing and decoding a batch with the few-step student",
    }
    rows = [f"| {titles[name]} | {Timing(**timing)} |" for name, timing in results["timings"].items()]
    host = results["machine"]
    notes = [
        f"Batch {batch}, {results['repeats']} repeats after {results['warm_up']} for warm-up; {host['device']}, "
        f"{host['threads']} threads, torch {host['torch']}.",
        f"Sampling: {results['images_per_second']:.0f} images per second.",
        f"Memory in training: {memory['training']:.0f} MiB, {memory['method']}; "
        f"the process held {memory['process_after_imports']:.0f} MiB once the libraries were imported.",
    ]
    header = f"| {results['config']} | seconds, median | quartiles |\n| --- | ---: | ---: |"
    return "\n".join([header, *rows, "", *notes]) + "\n"


def benchmark(
    config: Path = Path("configs/cold_start/tiny_sd3.yaml"),
    options: list[str] | None = None,
    warm_up: int = 3,
    repeats: int = 15,
    output: Path = Path("runs/bench.json"),
) -> None:
    """Measure, print a Markdown table, write the numbers.

    Args:
        config: of the run that is measured.
        options: overrides for it, as on the command line of `rtdmd_lightning.fit`.
        warm_up: steps, and batches drawn, before those that count.
        repeats: steps, and batches drawn, that count.
        output: the JSON file.
    """
    if warm_up < 1 or repeats < 2:
        raise UserError(f"warm_up must be at least 1 and repeats at least 2, not {warm_up} and {repeats}")
    results = measure(config, options or [], warm_up, repeats)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{markdown_table(results)}\nnumbers: {output}")


def main(arguments: list[str]) -> None:
    if any(argument.partition("=")[0] == COUNTS for argument in arguments):
        run_command(print_counts, arguments)
    elif GPU in arguments:
        run_command(look, [argument for argument in arguments if argument != GPU])
    else:
        run_command(benchmark, arguments)


if __name__ == "__main__":
    with readable_errors(), closing_process_group():
        main(sys.argv[1:])
