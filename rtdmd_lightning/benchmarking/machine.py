"""The machine: versions, and the ceilings that everything else is held against."""

import importlib.metadata
import platform
import subprocess
import time

import torch

from rtdmd_lightning.benchmarking.probe import Probe
from rtdmd_lightning.utils.randomness import SampleRandom

LIBRARIES = ("torch", "torchvision", "transformers", "diffusers", "peft", "lightning", "torchmetrics", "jsonargparse")
BF16_PEAK = 989e12
"""Dense bf16 operations a second of an H100 or H200 (SXM), by its data sheet."""

BF16_REACHED = 780
"""TFLOP/s that a large product reaches there."""


def machine(probe: Probe) -> None:
    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES)
    probe.row("versions", f"python {platform.python_version()} {versions}")
    if probe.on_accelerator:
        probe.attempt("device", device, probe)
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    probe.row("defaults", f"float32 matmul {precision}, cudnn.allow_tf32 {cudnn}, threads {torch.get_num_threads()}")
    big, width = (256, 64) if probe.small else (8192, 1536)
    probe.attempt("products", product, probe, (big, big, big), torch.bfloat16, BF16_REACHED)
    probe.attempt(
        "products", product, probe, (9 * (16 if probe.small else 1357), width, 4 * width), torch.bfloat16, None
    )
    probe.attempt("products", product, probe, (big, big, big), torch.float32, None)
    probe.attempt("copies", copies, probe)
    probe.attempt("launches", launches, probe)
    noise = SampleRandom(0, range(9), probe.device)
    drawn = probe.attempt("noise", probe.clock, lambda: noise.normal("x", (16, 64, 64)))
    if drawn is not None:
        probe.row("noise of 9 SD3.5 samples of 512 px", drawn * 1e3, "ms")


def device(probe: Probe) -> None:
    properties = torch.get_device_module(probe.device).get_device_properties(probe.device)
    probe.row("device", properties.name, note=f"{probe.memory_gib():.1f} GiB")
    probe.row("libraries", f"cuda {torch.version.cuda} cudnn {torch.backends.cudnn.version()}")
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    probe.row("driver, power limit, clock", said.strip())


def product(probe: Probe, shape: tuple[int, int, int], dtype: torch.dtype, expected: float | None) -> None:
    rows, inner, columns = shape
    a = torch.randn(rows, inner, device=probe.device).to(dtype)
    b = torch.randn(inner, columns, device=probe.device).to(dtype)
    rate = 2 * rows * inner * columns / probe.clock(lambda: a @ b, 10) / 1e12
    what = f"product {str(dtype).removeprefix('torch.')} {rows}x{inner}x{columns}"
    probe.near(what, rate, "TFLOP/s", expected, 1.2)


def copies(probe: Probe) -> None:
    size = 2**20 if probe.small else 2**31
    source = torch.zeros(size, dtype=torch.uint8, device=probe.device)
    target = torch.empty_like(source)
    both = 2 * size / probe.clock(lambda: target.copy_(source)) / 1e9
    probe.row("copy on the device, read and written", both, "GB/s", "" if probe.small else "3000 (H100), 4300 (H200)")
    host = torch.zeros(min(size, 2**28), dtype=torch.uint8)
    pageable = len(host) / probe.clock(lambda: target[: len(host)].copy_(host)) / 1e9
    probe.row("copy to the device, pageable", pageable, "GB/s")
    if probe.on_accelerator:
        pinned = host.pin_memory()
        rate = len(host) / probe.clock(lambda: target[: len(host)].copy_(pinned, non_blocking=True)) / 1e9
        probe.row("copy to the device, pinned", rate, "GB/s")


def launches(probe: Probe, count: int = 2000) -> None:
    x = torch.zeros(1, device=probe.device)
    probe.clock(lambda: [x.add_(1) for _ in range(100)])
    start = time.perf_counter()
    for _ in range(count):
        x.add_(1)
    probe.row("one tiny operation, until it is launched", (time.perf_counter() - start) / count * 1e6, "us")
    probe.synchronize()
