"""The cheapest switches with which a run fits one card."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
    """

    setup: Setup
    batch: int
    switches: Chosen
    held_out: Mapping[str, int]
    evaluates: bool
    trace: Callable[[Setup], Trace]

    def predicted(self, setup: Setup) -> MemoryEstimate:
        """From the trace of one sample, its activations times the samples of a pass; of a whole batch, from its own."""
        plain = replace(
            self.setup,
            micro_batch=setup.micro_batch and 1,
            checkpointing=setup.checkpointing,
            vae_checkpointing=setup.vae_checkpointing,
        )
        return at_worst(smaller(self.trace(plain), setup), setup, self.held_out)

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
    excess = 0

    def fits(setup: Setup) -> bool:
        return run.predicted(setup).total + excess <= budget

    while True:
        switches = cheapest(run.setup, run.switches, fits)
        if switches is None:
            least = changed(run.setup, run.switches)
            return Advice(run.switches, least, run.traced(least), fits=False)
        setup = largest_passes(changed(run.setup, switches), run.batch, fits)
        estimate = run.traced(setup)
        if estimate.total <= budget:
            return Advice(switches, setup, estimate, fits=True)
        excess = estimate.total - run.predicted(setup).total


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
