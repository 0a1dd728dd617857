"""The cheapest switches with which a run fits one card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch.utils._pytree import tree_map

from rtdmd_lightning.planning.estimate import MemoryEstimate, Trace
from rtdmd_lightning.planning.switches import Setup, Switch, at_worst, changed, smaller

Chosen = tuple[Switch, ...]


@dataclass(frozen=True)
class Run:
    """A run on one card as its config has it, and how others are traced.

    setup: the config's own.
    batch: samples of a batch.
    switches: those that it has, from the cheapest on.
    held_out: bytes of the rewards that an evaluation alone asks, by name.
    evaluates: does it draw images while it trains?
    trace: of the run with a setup; it takes a minute, so what was asked once is remembered.
    least: the same with few blocks (`blocks.few`, the first), which is faster.
    """

    setup: Setup
    batch: int
    switches: Chosen
    held_out: Mapping[str, int]
    evaluates: bool
    trace: Callable[[Setup], Trace]
    least: Callable[[Setup], Trace]

    def predicted(self, setup: Setup) -> MemoryEstimate:
        """From a trace of one sample a pass, times the samples of a pass.

        What autoencoder and rewards change is the difference of two traces with few blocks.
        """
        own = replace(self.setup, micro_batch=1, checkpointing=setup.checkpointing)
        one = replace(own, vae_checkpointing=setup.vae_checkpointing, reward_dtype=setup.reward_dtype)
        traced = self.trace(own)
        if one != own:
            traced = tree_map(lambda known, more, less: known + more - less, traced, self.least(one), self.least(own))
        return at_worst(smaller(traced, setup, setup.micro_batch or self.batch), setup, self.held_out)

    def at_least(self, setup: Setup) -> int:
        """Bytes of base, adapters and optimizer with a setup, for which nothing new has to be traced."""
        estimate = at_worst(smaller(self.trace(replace(self.setup, micro_batch=1)), setup, 1), setup)
        return estimate.base + estimate.adapters + estimate.optimizer

    def traced(self, setup: Setup) -> MemoryEstimate:
        return at_worst(self.trace(setup), setup, self.held_out)


@dataclass(frozen=True)
class Advice:
    """What makes a run fit, with the setup that it then has and its bytes. `fits` is false where nothing does."""

    switches: Chosen
    setup: Setup
    estimate: MemoryEstimate
    fits: bool


def advise(run: Run, budget: int) -> Advice:
    """The cheapest switches by prediction, checked by a trace of the run with them; where it tells more, once more."""
    plain = run.traced(run.setup)
    if plain.total <= budget:
        return Advice((), run.setup, plain, fits=True)
    excess = 0
    while True:
        advice = foresee(run, budget, excess)
        estimate = run.traced(advice.setup)
        if estimate.total <= budget or not advice.fits:
            return replace(advice, estimate=estimate, fits=estimate.total <= budget)
        excess = estimate.total - advice.estimate.total


def foresee(run: Run, budget: int, excess: int = 0) -> Advice:
    """The cheapest switches by prediction alone, if each needed so many more bytes than predicted."""

    def fits(setup: Setup) -> bool:
        return run.at_least(setup) <= budget and run.predicted(setup).total + excess <= budget

    switches = cheapest(run.setup, run.switches, fits)
    if switches is None:
        least = changed(run.setup, run.switches)
        return Advice(run.switches, least, run.predicted(least), fits=False)
    setup = largest_passes(changed(run.setup, switches), run.batch, fits)
    return Advice(switches, setup, run.predicted(setup), fits=True)


def cheapest(start: Setup, switches: Chosen, fits: Callable[[Setup], bool]) -> Chosen | None:
    """As few of the first ones as fit, and of those none that is not needed, the dearest first. None where nothing fits."""
    chosen = next(
        (switches[:count] for count in range(len(switches) + 1) if fits(changed(start, switches[:count]))), None
    )
    for switch in reversed(chosen or ()):
        rest = tuple(other for other in chosen or () if other is not switch)
        if fits(changed(start, rest)):
            chosen = rest
    return chosen


def largest_passes(setup: Setup, batch: int, fits: Callable[[Setup], bool]) -> Setup:
    """With micro-batches of as many samples as fit, of those numbers that divide the batch."""
    if setup.micro_batch is None:
        return setup
    sizes = [size for size in range(1, batch + 1) if batch % size == 0]
    larger: Sequence[Setup] = [replace(setup, micro_batch=size) for size in sizes]
    return next((each for each in reversed(larger) if fits(each)), setup)
