"""Both stages on the FLUX families' tiny pipelines: two steps in one process, and the same two steps on two processes."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from rtdmd_lightning import fit
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.modules.cold_start import FAKE_SCORE_FILE, GENERATOR_FILE
from rtdmd_lightning.modules.training import FewStepModule
from rtdmd_lightning.objectives import clean_from_velocity
from rtdmd_lightning.roles.lora import adapter_parameters, adapter_state_dict
from rtdmd_lightning.roles.roles import COLD_START, COLD_START_FAKE, EMA, FAKE_SCORE, GENERATOR
from rtdmd_lightning.roles.stacked import StackedLinear
from tests.support.tiny import STRATEGIES, load_checkpoint, write_config
from tests.support.tiny_backbones import family_config, module_of, tiny_backbones
from tests.support.tiny_rtdmd import save_cold_start_of, write_rtdmd_config

pytestmark = pytest.mark.slow

FAMILIES = ("flux", "flux_free", "flux2_two_bases")
COLD_STARTS = [("cold_start", name) for name in FAMILIES]
RTDMDS = [("rtdmd", name) for name in FAMILIES]


@dataclass(frozen=True)
class Run:
    """A stage's two steps in one process; `ran` holds which stack of adapters ran on which transformer (its id)."""

    stage: str
    name: str
    module: FewStepModule
    logged: dict
    folder: Path
    ran: set[tuple[int, tuple[str, ...]]]


def cold_start_folder(folders, name):
    """What a stage 1 of this family left behind."""
    folder = folders["flux"].parent / f"cold_start_of_{name}"
    if not folder.is_dir():
        save_cold_start_of(module_of(tiny_backbones(folders)[name]), folder)
    return folder


def config_of(stage, folders, name, folder):
    """The shared tiny configs with another backbone, and no pictures."""
    options = {
        "backbone": family_config(folders, name),
        "checkpoint_every": 2,
        "ema": {"decay": 0.5, "moves": 1, "every": 1, "warm_up": False},
    }
    if stage == "rtdmd":
        cold_start = cold_start_folder(folders, name)
        options |= {"micro_batches": 2, "policy": {"kl_weight": 0.1}}
        return str(write_rtdmd_config(folder, folders["flux"], cold_start, **options))
    path = write_config(folder, folders["flux"], batch_size=2, **options)
    config = yaml.safe_load(path.read_text())
    config["callbacks"]["evaluation"] = None
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture(scope="module")
def single(request, folders, tmp_path_factory):
    stage, name = request.param
    folder, ran = tmp_path_factory.mktemp(f"{stage}_{name}"), set()
    family = type(tiny_backbones(folders)[name])
    velocity = family.velocity

    def recording(self, transformer, *inputs):
        layer = next(module for module in transformer.modules() if isinstance(module, StackedLinear))
        ran.add((id(transformer), layer.selection.names))
        return velocity(self, transformer, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "velocity", recording)
        cli = fit.main(["--config", config_of(stage, folders, name, folder)])
    assert cli.trainer.global_step == 2
    return Run(stage, name, cli.model, dict(cli.trainer.callback_metrics), folder, ran)


def bases(run):
    """The teacher's transformer and the generator's: only FLUX.2's are two."""
    theirs, own = run.module.roles.transformer, run.module.roles.generator_base
    assert (own is None) == (run.name != "flux2_two_bases")
    return theirs, theirs if own is None else own


@pytest.mark.parametrize("single", COLD_STARTS + RTDMDS, indirect=True, ids="-".join)
def test_two_steps_move_every_role_and_write_the_result(single):
    assert single.logged and all(torch.isfinite(value) for value in single.logged.values()), single.logged
    result = single.folder / "runs" / "run" / single.stage
    exported = torch.load(result / GENERATOR_FILE, weights_only=True)
    assert (result / "pytorch_lora_weights.safetensors").is_file()
    assert all(tensor.abs().sum() > 0 for path, tensor in exported.items() if "lora_B" in path)
    for role in (GENERATOR, FAKE_SCORE, EMA):  # B starts at zero
        moved = [value for path, value in adapter_parameters(single.module, role).items() if "lora_B" in path]
        assert moved and max(value.abs().max() for value in moved) > 1e-4, role


@pytest.mark.parametrize("single", COLD_STARTS, indirect=True, ids="-".join)
def test_stage_1_runs_each_role_on_its_own_base(single):
    theirs, own = bases(single)
    assert single.ran == {(id(theirs), ()), (id(theirs), (FAKE_SCORE,)), (id(own), (GENERATOR,))}


@pytest.mark.parametrize("single", RTDMDS, indirect=True, ids="-".join)
def test_stage_2_runs_each_stack_on_its_own_base(single):
    """Rollouts and updates of the generator, the cold start that its KL pulls to, the fake score, the teacher."""
    theirs, own = bases(single)
    assert single.ran == {
        (id(own), (COLD_START, GENERATOR)),
        (id(own), (COLD_START,)),
        (id(theirs), (COLD_START_FAKE, FAKE_SCORE)),
        (id(theirs), ()),
    }
    assert single.logged["policy/ratio_deviation"] < 1e-6  # rollout and update agree on what the generator is


@pytest.mark.parametrize("single", RTDMDS, indirect=True, ids="-".join)
def test_the_cold_start_lies_unchanged_in_the_bases_of_its_roles(single, folders):
    theirs, own = bases(single)
    folder = cold_start_folder(folders, single.name)
    for adapter, file, base, other in (
        (COLD_START, GENERATOR_FILE, own, theirs),
        (COLD_START_FAKE, FAKE_SCORE_FILE, theirs, own),
    ):
        kept, expected = adapter_state_dict(base, adapter), torch.load(folder / file, weights_only=True)
        assert kept.keys() == expected.keys() and all(torch.equal(kept[key], expected[key]) for key in expected)
        assert other is base or not adapter_parameters(other, adapter)


@pytest.mark.parametrize("single", RTDMDS, indirect=True, ids="-".join)
def test_the_rewards_gradient_through_decoder_and_generator_is_its_slope(single):
    """Along the gradient the reward rises by the gradient's norm, by central differences."""
    module, device = single.module, torch.device("cpu")
    batch = PromptBatch(["a red circle", "two blue crosses"], [{}, {}], [0, 1])
    conditioning, sigma = module.embed(batch.prompts, device), module.sampler.sigmas[-2]
    state = torch.randn(2, *module.backbone.latent_shape(), generator=torch.Generator().manual_seed(0))

    def reward():
        sample = clean_from_velocity(state, module.roles.velocity(GENERATOR, state, sigma, conditioning), sigma=sigma)
        return module.final_step_loss.reward_backprop.reward(sample, batch).mean()

    parameters = module.roles.parameters_of(GENERATOR)
    gradient = torch.autograd.grad(reward(), parameters)
    norm = float(torch.nn.utils.get_total_norm(gradient))
    rewards, length = [], 1e-3
    with torch.no_grad():
        for sign in (1, -2):
            torch._foreach_add_(parameters, gradient, alpha=sign * length / norm)
            rewards.append(float(reward()))
        torch._foreach_add_(parameters, gradient, alpha=length / norm)
    assert norm > 1e-4
    assert (rewards[0] - rewards[1]) / (2 * length) == pytest.approx(norm, rel=0.02)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("single", COLD_STARTS + RTDMDS, indirect=True, ids="-".join)
def test_two_processes_make_the_single_process_updates(pair, single, strategy, folders, tmp_path):
    pair.fit("--config", config_of(single.stage, folders, single.name, tmp_path), *STRATEGIES[strategy])
    state, expected = (load_checkpoint(folder)["state_dict"] for folder in (tmp_path, single.folder))
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=5e-5, msg=key)  # what is trained moves beyond 1e-4
