"""What an update copies to a device, and how often the host waits for it: counted on fake CUDA tensors."""

from types import SimpleNamespace

import pytest
import torch

from rtdmd_lightning.data.rollout import Rollout
from rtdmd_lightning.data.stream import PromptBatch
from rtdmd_lightning.losses import Consistency, FinalStepSettings, PolicySettings, RenoiseSettings
from rtdmd_lightning.modules import ACDMDModule, RTDMDModule
from rtdmd_lightning.modules.notes import Notes
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.lora import LoraSettings
from rtdmd_lightning.roles.roles import FAKE_SCORE, GENERATOR
from rtdmd_lightning.utils.randomness import SampleRandom
from tests.support.tiny import tiny_backbone
from tests.support.tiny_backbones import save_all, tiny_backbones
from tests.support.tiny_rtdmd import Contrast, Redness, save_cold_start
from tests.support.traffic import on_fake_cuda

SAMPLES = 4
PROMPTS = [""] * SAMPLES
LORA = LoraSettings(rank=4, alpha=8)


def test_the_counter_counts(tiny_folder):
    """So the budgets below can fail."""
    module = ACDMDModule(tiny_backbone(tiny_folder), SAMPLES, (3.0, 3.0), lora=LORA)
    with on_fake_cuda(module) as traffic:
        there = torch.ones(3).to(module.device, non_blocking=True)
        assert traffic.counts == {"copies": 1}
        torch.tensor(1.0, device=module.device)
        assert traffic.counts == {"copies": 2, "blocking copies": 1}
        bool(there.sum() > 0), there.cpu()
        assert traffic.counts["reads"] == 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("families"))


@pytest.fixture(params=["sd3", "flux", "flux2"])
def backbone(request, tiny_folder, folders):
    """Not loaded."""
    return tiny_backbone(tiny_folder) if request.param == "sd3" else tiny_backbones(folders)[request.param]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"consistency": Consistency(moves=2), "fake_target": "rao_blackwell", "normalizer": "noise_free"},
        {"sub_interval": False, "random_stop": False, "renoise": RenoiseSettings("logit_normal", "uniform")},
    ],
    ids=["default", "more draws", "DMD2"],
)
def test_an_update_of_stage_1(backbone, options):
    module = ACDMDModule(backbone, SAMPLES, (3.0, 3.0), lora=LORA, **options)
    with on_fake_cuda(module) as traffic:
        random = SampleRandom(0, range(SAMPLES), module.device)
        conditioning = module.embed(PROMPTS, module.device)  # once a cycle
        assert traffic.take()["blocking copies"] == 0
        trajectory = module.roll_out_to(4, conditioning, random)
        counts = traffic.take()
        assert counts["copies"] <= 3 and counts["reads"] == 0  # FLUX's positions are made now
        module.fake_score_loss(trajectory.step(1), conditioning, random, "fake update 0")
        assert traffic.take() == {"copies": 1}
        reached = module.last_step(trajectory, 2, conditioning, random)
        module.matching_loss(reached, conditioning, random, 3.0)
        assert traffic.take() == {"copies": 2}


def test_a_micro_batch_of_stage_2(tiny_folder, tmp_path):
    rewards = RewardMixture([Redness(), Contrast()], {"redness": 1.0, "contrast": 1.0}, ["redness"])
    policy, final_step = PolicySettings(kl_weight=0.1, old_log_prob="update"), FinalStepSettings(decode_chunk=SAMPLES)
    cold_start = str(save_cold_start(tiny_folder, tmp_path))
    module = RTDMDModule(
        tiny_backbone(tiny_folder),
        SAMPLES,
        (3.0, 3.0),
        rewards,
        cold_start,
        policy=policy,
        final_step=final_step,
        lora=LORA,
    )
    batch = PromptBatch(PROMPTS, [{}] * SAMPLES, list(range(SAMPLES)))
    with on_fake_cuda(module) as traffic:
        shape = (SAMPLES, *module.backbone.latent_shape())
        states = tuple(torch.randn(shape, dtype=torch.bfloat16) for _ in range(5))
        rollout = Rollout(batch, states, {1: torch.zeros(SAMPLES)}, torch.ones(SAMPLES))
        module.embed(PROMPTS, module.device)
        traffic.take()
        module.stochastic_loss(rollout, 1)
        assert traffic.take() == {"copies": 2}
        module.fake_loss(rollout)
        assert traffic.take() == {"copies": 2}
        module.final_loss(rollout, list(range(SAMPLES)), 3.0)
        assert traffic.take() == {"copies": 2, "reads": 1}  # the mixture looks whether a reward's scores are finite
        module.notes.summary(lambda values: values)
        assert traffic.take() == {"reads": 1}


@pytest.mark.parametrize("role", [GENERATOR, FAKE_SCORE])
def test_an_optimizer_step_reads_the_device_once(tiny_folder, role):
    module = ACDMDModule(tiny_backbone(tiny_folder), SAMPLES, (3.0, 3.0), lora=LORA)
    with on_fake_cuda(module) as traffic:
        optimizers = module.configure_optimizers()
        module.optimize.module = SimpleNamespace(
            roles=module.roles,
            global_step=0,
            trainer=SimpleNamespace(max_steps=1),
            optimizers=lambda use_pl_optimizer: optimizers,
            manual_backward=lambda loss: None,  # it wants a driver
            log=lambda name, value: None,
        )
        for parameter in module.roles.parameters_of(role):
            parameter.grad = torch.zeros_like(parameter)
        traffic.take()
        module.optimize.backward(role, torch.ones((), device=module.device))
        module.optimize.step(role)
        assert traffic.take() == {"reads": 1}


def test_notes_read_the_device_once_whatever_they_hold(tiny_folder):
    module = ACDMDModule(tiny_backbone(tiny_folder), SAMPLES, (3.0, 3.0), lora=LORA)
    with on_fake_cuda(module) as traffic:
        notes = Notes()
        for number in range(5):
            notes.mean(f"mean {number}", torch.ones(3, device=module.device))
            notes.largest(f"largest {number}", torch.ones(3, device=module.device))
        notes.summary(lambda values: values)
        assert traffic.take() == {"reads": 1}
