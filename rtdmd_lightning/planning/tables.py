"""The estimates of a run as a table on the terminal, and as one row of a Markdown table of many runs."""

from rich.table import Table

from rtdmd_lightning.planning.estimate import GIB, GPUS, HEADROOM, MemoryEstimate

DDP, UNCHECKPOINTED, FSDP2, COPIES = "DDP", "DDP, no checkpointing", "FSDP2", "four copies, DDP"
Columns = dict[str, MemoryEstimate]
"""Of a run, by these names; without FSDP2 where the base is quantised."""

PARTS = {
    "base": "frozen base",
    "adapters": "adapters, with EMA",
    "gradients": "gradients, with DDP's buckets",
    "optimizer": "optimizers",
    "activations": "activations, at most",
    "vae": "VAE, float32",
    "rewards": "rewards",
    "embeddings": "embeddings that are kept",
    "text_encoders": "text encoders",
}
MARKDOWN_HEADER = (
    "| GiB | GPUs | frozen base | adapters, EMA, gradients, AdamW | VAE, rewards, embeddings | text encoders | "
    "activations: checkpointed, not | DDP: cached, not | FSDP2: cached, not | four copies: cached, not |"
)


def note(processes: int, unit: str = "GiB") -> str:
    sizes = ", ".join(str(gpu) for gpu in GPUS)
    return (
        f'{unit} on each of {processes} GPU(s). "fits": the smallest of {sizes} GB of which {HEADROOM:.0%} stay free '
        "for the context, workspaces and what the allocator cannot use."
    )


def terminal(title: str, columns: Columns, processes: int) -> Table:
    """A column an estimate, a row a part; then the sums and the smallest GPU that holds them."""
    estimates = list(columns.values())
    sums = {
        "sum": [estimate.total for estimate in estimates],
        "sum, prompts cached": [estimate.with_cached_prompts for estimate in estimates],
    }
    small = max(sums["sum"]) < GIB
    scale, unit = (2**20, "MiB") if small else (GIB, "GiB")
    table = Table(title=f"{title}: predicted memory", caption=note(processes, unit))
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for part, heading in PARTS.items():
        table.add_row(heading, *(f"{vars(estimate)[part] / scale:.2f}" for estimate in estimates))
    for heading, sizes in sums.items():
        table.add_section()
        table.add_row(heading, *(f"{size / scale:.2f}" for size in sizes))
        table.add_row("fits", *(MemoryEstimate.fits(size) for size in sizes))
    return table


def markdown(title: str, columns: Columns, processes: int) -> str:
    """Header and row. The parts are those of DDP; sums are with prompts cached, then with the text encoders beside them."""

    def gib(*sizes: int) -> str:
        return ", ".join(f"{size / GIB:.1f}" for size in sizes)

    def sums(name: str) -> str:
        if name not in columns:
            return "-"
        sizes = (columns[name].with_cached_prompts, columns[name].total)
        return ", ".join(f"{gib(size)} ({MemoryEstimate.fits(size)})" for size in sizes)

    ours = columns[DDP]
    cells = [
        title,
        str(processes),
        gib(ours.base),
        gib(ours.adapters + ours.gradients + ours.optimizer),
        gib(ours.vae + ours.rewards + ours.embeddings),
        gib(ours.text_encoders),
        gib(ours.activations, columns[UNCHECKPOINTED].activations),
        *(sums(name) for name in (DDP, FSDP2, COPIES)),
    ]
    rule = "| --- |" + " ---: |" * (len(cells) - 1)
    return f"{MARKDOWN_HEADER}\n{rule}\n| {' | '.join(cells)} |"
