"""How a run fits one card: closed forms of the switches' bytes, and the search by hand."""

import shlex
from dataclasses import replace

import pytest

from rtdmd_lightning import fit, plan
from rtdmd_lightning.planning.advice import budget_of, command
from rtdmd_lightning.planning.card import Advice, Run, advise, cheapest, largest_passes
from rtdmd_lightning.planning.estimate import GIB, Base, Trace
from rtdmd_lightning.planning.phases import EVALUATION, FAKE_STEP, GENERATOR_STEP, ROLLOUT
from rtdmd_lightning.planning.switches import SWITCHES, Setup, Switch, at_worst, changed, options_of, smaller
from rtdmd_lightning.planning.trace import trace
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY, write_config

TRACE = Trace(
    bases=(Base(total=1000, largest_block=100, outside=200, weights=400, linear=800, widest=40),),
    trained=80,
    adapters=120,
    gradients=40,
    vae=7,
    text_encoders=500,
    rewards={"clipscore": 100, "pickscore": 200, "geneval": 300},
    differentiable={"clipscore": 100, "pickscore": 200},
    checkpointed={ROLLOUT: 60, EVALUATION: 50, FAKE_STEP: 140, GENERATOR_STEP: 90},
    full={ROLLOUT: 60, EVALUATION: 50, FAKE_STEP: 940, GENERATOR_STEP: 90},
)
ADAPTERS = 120 + 40 + 160  # with gradients and moments


def switch(name: str, **change) -> Switch:
    return Switch(name, name, change, (f"--{name}",), "")


A, B, C = switch("a", cached=True), switch("b", checkpointing=True), switch("c", offload=True)


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        (lambda setup: True, ()),
        (lambda setup: setup.cached, (A,)),
        (lambda setup: setup.offload, (C,)),
        (lambda setup: setup.checkpointing and setup.cached, (A, B)),
        (lambda setup: setup.offload and (setup.cached or setup.checkpointing), (A, C)),
        (lambda setup: False, None),
    ],
)
def test_the_cheapest_switches_are_chosen_and_none_that_is_not_needed(fits, expected):
    assert cheapest(Setup(), (A, B, C), fits) == expected


def test_passes_are_as_large_as_fit_and_divide_the_batch():
    def up_to_nine(setup: Setup) -> bool:
        return setup.micro_batch <= 9

    assert largest_passes(Setup(micro_batch=1), 24, up_to_nine) == Setup(micro_batch=8)
    assert largest_passes(Setup(), 24, up_to_nine) == Setup()


def test_at_worst_all_parts_and_the_largest_phase():
    assert at_worst(TRACE, Setup()).total == 1000 + ADAPTERS + 900 + 7 + 500 + 600
    assert at_worst(TRACE, Setup(checkpointing=True, cached=True)).total == 1000 + ADAPTERS + 100 + 7 + 600
    assert at_worst(TRACE, Setup(checkpointing=True), held_out={"imagereward": 11}).rewards == 611


def test_what_is_offloaded_counts_where_it_is_used():
    away = Setup(checkpointing=True, offload=True)
    assert (
        at_worst(TRACE, away).text_encoders == 500
    )  # the moment of the prompts: 500, and nothing else that comes and goes
    assert (
        at_worst(TRACE, replace(away, cached=True)).total == 1000 + ADAPTERS + 50 + 7 + 300
    )  # back-propagated, or the largest
    larger = TRACE._replace(checkpointed=TRACE.checkpointed | {FAKE_STEP: 1040})
    kept = TRACE._replace(embeddings=9)
    assert [at_worst(kept, Setup(keeps_embeddings=keeps)).embeddings for keeps in (True, False)] == [9, 0]
    worst = at_worst(larger, away)
    assert (worst.activations, worst.vae, worst.rewards, worst.text_encoders) == (1000, 0, 0, 0)


def test_bytes_of_few_bits_and_of_larger_passes():
    assert [smaller(TRACE, Setup(quantization=kind), 1).bases[0].total for kind in ("int8", "nf4")] == [600, 425]
    assert smaller(TRACE, Setup(), 3).checkpointed[FAKE_STEP] == 40 + 3 * 100


def test_of_an_offloaded_base_the_largest_layer_is_on_the_card_where_it_is_quantised():
    away = Setup(quantization="int8", base_offload=True)
    assert at_worst(smaller(TRACE, away, 1), away).base == 600 - 400 + 40
    assert at_worst(TRACE, Setup(base_offload=True)).base == 1000


def run_of(trace, switches=SWITCHES) -> Run:
    return Run(Setup(checkpointing=True), 8, switches, held_out={}, evaluates=False, trace=trace, least=trace)


def test_a_prediction_is_checked_and_where_it_was_too_low_the_next_choice_has_less():
    """Two samples a pass would fit by prediction; a trace of them has half as much again."""

    def trace(setup: Setup) -> Trace:
        size = {None: 2000, 1: 100, 2: 300}[setup.micro_batch]
        phases = {ROLLOUT: 60, FAKE_STEP: 40 + size, GENERATOR_STEP: 90}
        return TRACE._replace(rewards={}, differentiable={}, text_encoders=0, checkpointed=phases)

    micro = (switch("micro", micro_batch=1),)
    advice = advise(run_of(trace, micro), 1000 + ADAPTERS + 7 + 250)
    assert (advice.setup.micro_batch, advice.fits) == (1, True) and advice.estimate.activations == 100
    assert advise(run_of(trace, micro), 1000 + ADAPTERS + 7 + 300).setup.micro_batch == 2
    nothing = advise(run_of(trace, micro), 100)
    assert not nothing.fits and nothing.estimate.activations == 100


def test_options_are_those_of_the_switches_that_are_on():
    micro = next(each for each in SWITCHES if "micro_batch" in each.change)
    assert options_of(Setup(micro_batch=4), (A, micro)) == ["--model.micro_batch_size=4"]
    assert options_of(Setup(), (A, micro)) == []


@pytest.mark.parametrize("stage", ["cold_start", "rtdmd"])
def test_the_command_with_all_switches_is_a_run_that_fit_takes(stage, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    arguments = ["--config", f"configs/{stage}/flux1_dev.yaml"]
    module = fit.parse([*arguments, *plan.ANYWHERE]).model
    switches = tuple(each for each in SWITCHES if each.applies(module))
    setup = changed(Setup(), switches)
    advice = Advice(switches, setup, at_worst(TRACE, setup), fits=True)
    words = shlex.split(command(arguments, advice, evaluates=stage == "rtdmd"))
    assert words[:2] == ["rtdmd", "fit"]
    run = fit.parse([*words[2:], *plan.ANYWHERE])
    assert run.trainer.world_size == 1 and plan.setup_of(run.model) == setup


def test_a_base_that_trains_is_not_quantised(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    run = ["--config=configs/cold_start/tiny_sd3.yaml", "--callbacks={}"]
    names = [
        {switch.name for switch in plan.run_on_card([*run, *options]).switches}
        for options in ([], ["--config=configs/parts/full.yaml"])
    ]
    assert names[1] < names[0] and names[0] - names[1] == {name for name in names[0] if name.startswith("base ")}


@pytest.mark.parametrize("card", ["0", "-24", "nan", "many", ""])
def test_a_card_that_is_none_is_refused(card):
    with pytest.raises(UserError, match="--card"):
        plan.main(["--config=configs/cold_start/tiny_sd3.yaml", f"--card={card}"])


def test_a_run_that_fits_is_told_with_its_command_and_one_that_does_not_with_the_least(monkeypatch, capsys):
    monkeypatch.setattr(plan, "run_on_card", lambda arguments: run_of(lambda setup: TRACE))
    plan.main(["--config", "a/b.yaml", "--card", "24"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("rtdmd fit --config a/b.yaml --trainer.devices=1")
    with pytest.raises(UserError, match=r"a/b .*\b5e-07 GB"):
        plan.main(["--config=a/b.yaml", "--card=0.0000005"])


def test_several_cards_are_a_row_of_a_table(monkeypatch, capsys):
    def in_gib(setup: Setup) -> Trace:
        return TRACE._replace(checkpointed={ROLLOUT: (setup.micro_batch or 8) * GIB}, rewards={}, differentiable={})

    monkeypatch.setattr(plan, "run_on_card", lambda arguments: run_of(in_gib))
    plan.main(["--config", "a/b.yaml", "--markdown", "--card=10,5,1"])
    header, rule, row = capsys.readouterr().out.splitlines()
    assert header == "| GiB | 10 GB | 5 GB | 1 GB |" and rule.count("|") == header.count("|")
    assert row == "| a/b | 8.0 | 4.0: 4 a pass | no: 1.0 |"
    with pytest.raises(UserError, match="--card"):
        plan.main(["--config", "a/b.yaml", "--card=10,5"])


def test_a_tenth_of_the_card_stays_free():
    assert budget_of(20) == 18 * GIB


@pytest.mark.slow
def test_a_tiny_run_on_one_card_that_is_too_small_for_its_batch(tiny_folder, tmp_path):
    """By traces: as it is where there is room; with a MiB less than that, in micro-batches that do fit."""
    run = plan.run_on_card(
        [
            f"--config={write_config(tmp_path, tiny_folder)}",
            "--model.batch_size=8",
            "--model.backbone.gradient_checkpointing=true",
        ]
    )
    plain = run.traced(run.setup)
    assert advise(run, plain.total) == Advice((), run.setup, plain, fits=True)
    micro = replace(run, switches=tuple(switch for switch in SWITCHES if "micro_batch" in switch.change))
    advice = advise(micro, plain.total - 2**20)
    assert advice.fits and advice.setup.micro_batch in (1, 2, 4)
    assert advice.estimate == run.traced(advice.setup) and advice.estimate.total <= plain.total - 2**20


@pytest.mark.slow
def test_an_offloaded_base_has_the_bytes_of_its_trace(tiny_folder, tmp_path):
    def traced(offload: str) -> Trace:
        options = ["--model.backbone.quantization=int8", f"--model.offload={offload}", *plan.ANYWHERE]
        run = fit.parse([f"--config={write_config(tmp_path, tiny_folder)}", *options])
        return trace(run.model, run.trainer)

    there, away = traced("[]"), traced("[base]")
    setup = Setup(quantization="int8", base_offload=True)
    (base,) = there.bases
    largest = base.linear * base.widest // base.weights
    assert away.bases[0].total == base.total - base.linear == at_worst(there, setup).base - largest
    for phase, peak in away.full.items():
        assert 0 <= peak - there.full[phase] <= largest
