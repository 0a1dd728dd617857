"""What a run will need of memory: `rtdmd plan --config X [--trainer.devices N --model.…] [--markdown]`.

`--card 24` asks how the run fits one card of 24 GB: it prints the cheapest set of switches and the command line that has them;
`--card 12,16,24 --markdown` prints a row of a table for several cards.

Takes the options of `rtdmd_lightning.fit`, and needs no weights, prompts or GPU: the run's own module executes one rollout, one
fake-score step and one generator step on fake tensors (`rtdmd_lightning/planning`), with two and with three transformer blocks of
each kind, from which all blocks follow. Published models are known by the committed facts; other pipelines are read from their
folder. Not counted are the GPU's context, workspaces inside kernels, fragmentation, evaluations with their held-out rewards, and
the passes of text encoders and of rewards without gradient. On the toy world the peak is within 15% of what is measured
(`tests/planning/test_prediction.py`).
"""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("plan")

import logging
import sys
import warnings
from dataclasses import replace
from functools import cache

from rich.console import Console
from rich.status import Status

from rtdmd_lightning import fit
from rtdmd_lightning.callbacks.reward_eval import evaluation_of
from rtdmd_lightning.data.stream import samples_per_pass
from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.models.placement import BASE, TEXT_ENCODERS, VAE
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.modules.memory import REWARDS
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning import tables
from rtdmd_lightning.planning.advice import (
    ONE_CARD,
    budget_of,
    cards_table,
    command,
    evaluation_options,
    parts_table,
    prices,
    too_large,
)
from rtdmd_lightning.planning.blocks import few, for_all_blocks
from rtdmd_lightning.planning.card import Run, advise, foresee
from rtdmd_lightning.planning.command_line import CARD, cards, taken, title
from rtdmd_lightning.planning.estimate import Trace, four_copies, one_base, sharded
from rtdmd_lightning.planning.fake_module import known_shapes
from rtdmd_lightning.planning.rewards import reward_bytes
from rtdmd_lightning.planning.switches import SWITCHES, Setup, options_of
from rtdmd_lightning.planning.trace import trace, trace_blocks
from rtdmd_lightning.utils.command_line import wide_console
from rtdmd_lightning.utils.errors import UserError, readable_errors, require

MARKDOWN = "--markdown"
# A plan needs no prompts, and no GPUs: as many processes of a CPU are described, none is started.
ANYWHERE = ["--data.prompts=shapes:train", "--trainer.accelerator=cpu", "--trainer.logger=false"]


def plan(arguments: list[str]) -> tuple[tables.Columns, int]:
    """The estimates of a run, by what they are of, and its number of processes.

    Raises UserError for a config without shapes that are known, or a batch that does not divide by the processes.
    """
    run = fit.parse([*arguments, *ANYWHERE])
    processes = run.trainer.world_size
    samples_per_pass(run.model.batch_size, processes, run.model.micro_batch_size)  # told before the trace of a minute
    traced = trace(run.model, run.trainer)
    columns = {
        tables.DDP: one_base(traced, processes, checkpointing=True),
        tables.UNCHECKPOINTED: one_base(traced, processes, checkpointing=False),
        tables.FSDP2: sharded(traced, processes, checkpointing=True),
        tables.COPIES: four_copies(traced, processes, checkpointing=True),
    }
    if run.model.backbone.quantization != "none":
        del columns[tables.FSDP2]  # which a run refuses
    return columns, processes


def run_on_card(arguments: list[str]) -> Run:
    """A run on one card, where nothing is traced yet. Raises UserError as `plan` does."""
    described = fit.parse([*arguments, *ONE_CARD, *ANYWHERE])
    configs, blocks = known_shapes(described.model)  # what is refused is told before the traces
    samples_per_pass(described.model.batch_size, 1, described.model.micro_batch_size)
    evaluation = evaluation_of(described.trainer)
    own = described.model.rewards.rewards if isinstance(described.model, RTDMDModule) else {}
    asked = {} if evaluation is None else evaluation.rewards
    held_out = {name: reward_bytes(reward) for name, reward in asked.items() if name not in own}
    switches = tuple(switch for switch in SWITCHES if switch.applies(described.model))

    @cache
    def trace_few(setup: Setup, number: int) -> Trace:
        options = [*options_of(setup, switches), *evaluation_options(setup, evaluation is not None)]
        run = fit.parse([*arguments, *ONE_CARD, *options, "--model.offload=[]", *ANYWHERE])
        draws = evaluation_of(run.trainer)
        images = None if draws is None else draws.batch_size
        return trace_blocks(run.model, run.trainer, configs, few(blocks)[number], not setup.checkpointing, images)

    def least_of(setup: Setup, number: int = 0) -> Trace:
        """What lies elsewhere most of the time is traced as if it were on the device, and left out where it is not used."""
        there = replace(setup, cached=False, offload=False, keeps_embeddings=True, base_offload=False)
        return trace_few(there, number)

    def trace_of(setup: Setup) -> Trace:
        return for_all_blocks([least_of(setup, number) for number in range(len(few(blocks)))], blocks)

    return Run(
        setup=setup_of(described.model),
        batch=described.model.batch_size,
        switches=switches,
        held_out=held_out,
        evaluates=evaluation is not None,
        trace=trace_of,
        least=least_of,
    )


def setup_of(module: FewStepModule) -> Setup:
    """What the run's own config has of the switches."""
    backbone = module.backbone
    assert isinstance(backbone, PipelineBackbone)
    return Setup(
        cached=not backbone.text_encoders,
        checkpointing=backbone.gradient_checkpointing,
        micro_batch=module.micro_batch_size,
        offload={TEXT_ENCODERS, VAE, REWARDS} <= set(module.memory.offload),
        keeps_embeddings=backbone.embeddings_on_device > 0,
        vae_checkpointing=backbone.vae_gradient_checkpointing,
        reward_dtype=module.rewards.dtype if isinstance(module, RTDMDModule) else None,
        quantization=backbone.quantization,
        base_offload=BASE in module.memory.offload,
    )


def fit_card(arguments: list[str], card: float) -> None:
    """Print whether a run fits one card of so many GB, and otherwise what makes it fit. Raises UserError where nothing does."""
    run, name = run_on_card(arguments), title(arguments)
    with _tracing_for_a_card():
        plain, advice = run.traced(run.setup), advise(run, budget_of(card))
    if not advice.fits:
        raise UserError(too_large(name, card, advice))
    wide_console().print(parts_table(name, card, plain, advice))
    for price in prices(advice):
        print(price)
    print(command(arguments, advice, run.evaluates))


def fit_cards(arguments: list[str], sizes: list[float]) -> str:
    """What makes a run fit each of several cards, by prediction alone: a row of Markdown below its header."""
    run = run_on_card(arguments)
    with _tracing_for_a_card():
        return cards_table(title(arguments), {size: foresee(run, budget_of(size)) for size in sizes})


def _tracing_for_a_card() -> Status:
    return Console(stderr=True).status("tracing the run and smaller ones on fake tensors: some minutes")


def main(arguments: list[str]) -> None:
    """Print the table of a run; with `--markdown` among the arguments, one row of Markdown below its header."""
    _quiet()
    card, arguments = taken(arguments, CARD)
    options = [argument for argument in arguments if argument != MARKDOWN]
    in_markdown = len(options) < len(arguments)
    if card is not None:
        sizes = cards(card)
        require(in_markdown or len(sizes) == 1, f"{CARD} takes several sizes only with {MARKDOWN}: give one of {sizes}")
        if in_markdown:
            print(fit_cards(options, sizes))
        else:
            fit_card(options, sizes[0])
        return
    with Console(stderr=True).status("tracing the run's updates on fake tensors: about a minute"):
        columns, processes = plan(options)
    if in_markdown:
        print(tables.markdown(title(options), columns, processes))
    else:
        wide_console().print(tables.terminal(title(options), columns, processes))


def _quiet() -> None:
    warnings.filterwarnings("ignore")
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
