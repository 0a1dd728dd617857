"""What is measured: real steps, after the warm-up, in numbers that add up."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from rtdmd_lightning import bench as benchmarks
from rtdmd_lightning.bench import markdown_table
from rtdmd_lightning.benchmarking import stopwatch
from rtdmd_lightning.benchmarking.stopwatch import Stopwatch, Timing
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import write_config


def test_a_timing_is_median_and_quartiles_of_one_part():
    assert Timing.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Timing(median=3.0, low=2.0, high=4.0)
    assert Timing.of([5.0, 1.0, 3.0, 2.0, 4.0], parts=2) == Timing(median=1.5, low=1.0, high=2.0)


def test_the_stopwatch_leaves_the_warm_up_out(monkeypatch):
    clock, watch = SimpleNamespace(now=0.0), Stopwatch(warm_up=2)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: clock.now)
    module = SimpleNamespace(device=torch.device("cpu"))
    for step, seconds in enumerate([100.0, 50.0, 3.0, 5.0]):
        trainer = SimpleNamespace(
            callback_metrics={"time/rollout": torch.tensor(seconds / 2), "fake_score/loss": torch.tensor(9.0)}
        )
        batch = SimpleNamespace(prompts=[f"prompt {step}"])
        watch.on_train_batch_start(trainer, module, batch, step)
        clock.now += seconds
        watch.on_train_batch_end(trainer, module, None, batch, step)
        clock.now += 1000
    assert watch.seconds == {"training_step": [3.0, 5.0], "rollout": [1.5, 2.5]} and watch.prompts == ["prompt 3"]


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [True, False])
def test_a_benchmark_of_real_steps(tiny_folder, tmp_path, capsys, monkeypatch, reuse):
    config, output = write_config(tmp_path, tiny_folder), tmp_path / "out/bench.json"
    monkeypatch.chdir(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    option = f'["--model.reuse_rollouts={str(reuse).lower()}"]'
    arguments = [f"--config={config}", "--options", option, "--warm_up=1", "--repeats=2", f"--output={output}"]
    benchmarks.main(arguments)
    results = json.loads(output.read_text())
    assert results["config"] == str(config) and results["options"] == json.loads(option)
    assert {path.name for path in tmp_path.iterdir()} == before | {"out"}  # no log, no checkpoint, no evaluation

    timings = {name: timing["median"] for name, timing in results["timings"].items()}
    assert ("rollout" in timings) == reuse
    # The median of two is their mean, and means add up: the parts of a step are no more than the step.
    parts = timings.get("rollout", 0) + 2 * timings["fake_score_update"] + timings["generator_update"]
    assert 0 < parts < timings["training_step"] + 1e-4
    assert all(timing["low"] <= timing["median"] <= timing["high"] for timing in results["timings"].values())
    assert results["images_per_second"] == pytest.approx(4 / timings["sampling"])
    memory = results["peak_memory"]
    assert 100 < memory["process_after_imports"] <= memory["training"] < 50_000

    printed = capsys.readouterr().out
    assert markdown_table(results) in printed and str(output) in printed
    assert f"| one fake-score update | {timings['fake_score_update']:.4f} |" in printed


@pytest.mark.slow
def test_images_are_drawn_while_the_module_is_on_its_device(tiny_folder, tmp_path, monkeypatch):
    """A trainer that ends moves the module to the CPU; autoencoder and embeddings stay where they were."""
    happened = []

    def drawing(module, prompts, warm_up, repeats):
        happened.append("drawn")
        return [1.0, 2.0]

    def torn_down(strategy):
        happened.append("torn down")

    monkeypatch.setattr(benchmarks, "sampling_seconds", drawing)
    monkeypatch.setattr(SingleDeviceStrategy, "teardown", torn_down)
    benchmarks.measure(write_config(tmp_path, tiny_folder), [], warm_up=1, repeats=2)
    assert happened == ["drawn", "torn down"]


@pytest.mark.parametrize(("option", "told"), [("--repeats=1", "repeats at least 2"), ("--warm_up=0", "at least 1")])
def test_too_few_repeats_are_refused(option, told):
    with pytest.raises(UserError, match=told):
        benchmarks.main([option])


def test_memory_on_a_cpu_is_in_mib():
    """Against Linux's own high-water mark; getrusage's may be higher, it knows what the process was before an exec."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("this system has no /proc")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    resident = int(line.split()[1]) / 1024
    assert resident * 0.99 < benchmarks.peak_memory(torch.device("cpu")) < 20 * resident
