"""What makes a run smaller on one card, from the cheapest to the dearest, and what each comes to in bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from rtdmd_lightning.models.frozen_linear import BYTES_OF_A_WEIGHT
from rtdmd_lightning.models.quantization import Quantization
from rtdmd_lightning.modules import RTDMDModule
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.planning.estimate import MOMENTS, Base, MemoryEstimate, Trace
from rtdmd_lightning.planning.phases import EVALUATION, FAKE_STEP, GENERATOR_STEP, ROLLOUT
from rtdmd_lightning.rewards.precision import TowerDtype

NONE: Mapping[str, int] = MappingProxyType({})

PROMPTS = "prompts"
"""The moment when text encoders that are offloaded otherwise lie on the device."""


@dataclass(frozen=True)
class Setup:
    """What of a run decides its memory on one card.

    micro_batch: samples of a pass; None: the whole batch.
    keeps_embeddings: do embeddings that were used stay on the card for later?
    offload, base_offload: do text encoders, autoencoder and rewards lie in CPU memory? does the quantised base?
    reward_dtype: of the networks of the rewards that have one to choose; None: each one's own.
    """

    cached: bool = False
    checkpointing: bool = False
    micro_batch: int | None = None
    offload: bool = False
    keeps_embeddings: bool = True
    vae_checkpointing: bool = False
    reward_dtype: TowerDtype | None = None
    quantization: Quantization = "none"
    base_offload: bool = False


def in_every_run(module: FewStepModule) -> bool:
    return True


def with_rewards(module: FewStepModule) -> bool:
    return isinstance(module, RTDMDModule)


def with_towers(module: FewStepModule) -> bool:
    return isinstance(module, RTDMDModule) and bool(module.rewards.of_any_dtype)


def with_adapters(module: FewStepModule) -> bool:
    """Where all weights train, none can be kept in few bits."""
    return module.trainable == "lora"


@dataclass(frozen=True)
class Switch:
    """A change of a setup, how the command line spells it, and what it costs in time as far as that is known.

    brief: its name in a table.
    applies: does a run of this module have it?
    """

    name: str
    brief: str
    change: dict[str, Any]
    options: tuple[str, ...]
    slowdown: str
    applies: Callable[[FewStepModule], bool] = in_every_run


SWITCHES = (
    Switch(
        "cached embeddings",
        "cache",
        {"cached": True},
        ("--model.backbone.embedding_cache=embeddings", "--model.backbone.text_encoders=false"),
        "none: prompts are embedded once, before the run (rtdmd embed)",
    ),
    Switch(
        "gradient checkpointing",
        "checkpointing",
        {"checkpointing": True},
        ("--model.backbone.gradient_checkpointing=true",),
        "3/2 of every pass with gradient, counted: forward twice, and backward, where a frozen base costs as much as forward",
    ),
    Switch(
        "micro-batches",
        "{micro_batch} a pass",
        {"micro_batch": 1},
        ("--model.micro_batch_size={micro_batch}",),
        "1 in operations, counted; the time of small passes is not measured",
    ),
    Switch(
        "offload",
        "offload",
        {"offload": True},
        ("--model.offload=[text_encoders,vae,rewards]",),
        "their weights are copied to the card once a use; not measured",
    ),
    Switch(
        "no embeddings kept",
        "no embeddings kept",
        {"keeps_embeddings": False},
        ("--model.backbone.embeddings_on_device=0",),
        "a prompt's embedding is copied to the card for each pass; not measured",
    ),
    Switch(
        "VAE's gradient checkpointing",
        "VAE checkpointing",
        {"vae_checkpointing": True},
        ("--model.backbone.vae_gradient_checkpointing=true",),
        "4/3 of the decoder's share in the generator update, counted: its forward pass is computed once more",
        with_rewards,
    ),
    Switch(
        "rewards in float16",
        "float16",
        {"reward_dtype": "float16"},
        ("--model.rewards.dtype=float16",),
        "not measured; scores differ a little (rewards/README.md)",
        with_towers,
    ),
    Switch(
        "base in int8",
        "int8",
        {"quantization": "int8"},
        ("--model.backbone.quantization=int8",),
        "not measured",
        with_adapters,
    ),
    Switch(
        "base in nf4",
        "nf4",
        {"quantization": "nf4"},
        ("--model.backbone.quantization=nf4",),
        "not measured",
        with_adapters,
    ),
    Switch(
        "base offloaded",
        "base offloaded",
        {"base_offload": True},
        ("--model.offload+=base",),
        "the base is copied to the card for each forward and each backward pass; not measured",
        with_adapters,
    ),
)


def changed(setup: Setup, switches: tuple[Switch, ...]) -> Setup:
    """The setup with the switches on; of two that change the same, the last one counts."""
    for switch in switches:
        setup = replace(setup, **switch.change)
    return setup


def options_of(setup: Setup, switches: tuple[Switch, ...]) -> list[str]:
    """On the command line, of those of the switches that are on in the setup."""
    return [option.format(**vars(setup)) for switch in _on(setup, switches) for option in switch.options]


def brief_of(setup: Setup, switches: tuple[Switch, ...]) -> list[str]:
    """In a table, of the same."""
    return [switch.brief.format(**vars(setup)) for switch in _on(setup, switches)]


def _on(setup: Setup, switches: tuple[Switch, ...]) -> list[Switch]:
    least = replace(setup, micro_batch=setup.micro_batch and 1)
    return [switch for switch in switches if changed(least, (switch,)) == least]


def smaller(trace: Trace, setup: Setup, samples: int) -> Trace:
    """What a trace would be with the setup's base, and in each pass so many times the samples that it had."""
    bases = trace.bases
    if setup.quantization != "none":
        of_a_weight = BYTES_OF_A_WEIGHT[setup.quantization]
        bases = tuple(_rounded(base, int(of_a_weight * base.weights)) for base in bases)

    def scaled(phases: dict[str, int]) -> dict[str, int]:
        return {name: trace.gradients + samples * (size - trace.gradients) for name, size in phases.items()}

    return trace._replace(bases=bases, checkpointed=scaled(trace.checkpointed), full=scaled(trace.full))


def _rounded(base: Base, linear: int) -> Base:
    return base._replace(total=base.total - base.linear + linear, linear=linear)


def at_worst(trace: Trace, setup: Setup, held_out: Mapping[str, int] = NONE) -> MemoryEstimate:
    """One card's bytes at the moment that has most of them; `held_out`: bytes of the rewards that an evaluation alone asks."""
    return max(_moments(trace, setup, held_out), key=lambda moment: moment.total)


def _moments(trace: Trace, setup: Setup, held_out: Mapping[str, int]) -> Iterator[MemoryEstimate]:
    reinforces, away = bool(trace.rewards), setup.offload
    elsewhere = setup.base_offload and setup.quantization != "none"
    every = {**trace.rewards, **held_out}
    needed = {  # of rewards, where they are offloaded: one scores after the other, those that are back-propagated together
        ROLLOUT: max(trace.rewards.values(), default=0),
        GENERATOR_STEP: sum(trace.differentiable.values()),
        EVALUATION: max(every.values(), default=0),
    }
    text_encoders = 0 if setup.cached else trace.text_encoders
    phases = trace.checkpointed if setup.checkpointing else trace.full
    if away and not setup.cached:
        phases = phases | {PROMPTS: 0}
    for name, size in phases.items():
        decodes = name == EVALUATION or (reinforces and name not in (FAKE_STEP, PROMPTS))
        yield MemoryEstimate(
            base=sum(base.total - elsewhere * (base.linear - _widest(base)) for base in trace.bases),
            adapters=trace.adapters,
            gradients=trace.gradients,
            optimizer=MOMENTS * trace.trained,
            activations=max(0, size - trace.gradients),
            vae=trace.vae if decodes or not away else 0,
            text_encoders=text_encoders if name == PROMPTS or not away else 0,
            rewards=needed.get(name, 0) if away else sum(every.values()),
            embeddings=trace.embeddings if setup.keeps_embeddings else 0,
        )


def _widest(base: Base) -> int:
    """Bytes of the largest of its layers that may be offloaded, which is copied to the card while it is used."""
    return base.linear * base.widest // max(1, base.weights)
