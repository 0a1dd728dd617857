"""Offloaded parts are on the device while they are used, and nothing else changes."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from rtdmd_lightning.models.pipeline import PipelineBackbone
from rtdmd_lightning.planning.fake_device import FAKE_DEVICE, faked
from rtdmd_lightning.rewards.mixture import RewardMixture
from rtdmd_lightning.roles.drawing import decode
from rtdmd_lightning.utils.offloading import Offloaded
from tests.support.tiny import tiny_backbone, tiny_module, train
from tests.support.tiny_rtdmd import Redness, save_cold_start, tiny_rtdmd_module

EVERYTHING = ["text_encoders", "vae", "rewards"]


def device_of(network: nn.Module) -> str:
    (device,) = {tensor.device.type for tensor in (*network.parameters(), *network.buffers())}
    return device


def test_weights_come_and_go_and_uses_nest():
    with faked():
        network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).requires_grad_(False).to(FAKE_DEVICE)
        offloaded = Offloaded([network], FAKE_DEVICE)
        assert device_of(network) == "cpu"
        for _ in range(2):
            with offloaded.at_work():
                with offloaded.at_work():
                    assert device_of(network) == "cuda"
                assert network(torch.zeros(4, 2, device=FAKE_DEVICE)).shape == (4, 3)
            assert device_of(network) == "cpu"
        with pytest.raises(KeyError), offloaded.at_work():
            raise KeyError("a failure in between")
        assert device_of(network) == "cpu"


def test_numbers_are_the_same_after_a_return():
    network = nn.Linear(2, 3)
    before = network.weight.clone()
    with Offloaded([network], torch.device("cpu")).at_work():
        assert torch.equal(network.weight, before)
    assert torch.equal(network.weight, before) and isinstance(network.weight, nn.Parameter)


def test_a_shared_weight_stays_one():
    with faked():
        first, second = (nn.Linear(2, 2).requires_grad_(False).to(FAKE_DEVICE) for _ in range(2))
        second.weight = first.weight
        both = nn.Sequential(first, second)
        with Offloaded([both], FAKE_DEVICE).at_work():
            assert first.weight is second.weight and device_of(both) == "cuda"
        assert first.weight is second.weight and device_of(both) == "cpu"


def test_a_backbones_parts_are_on_the_device_while_they_work(tiny_folder):
    backbone = tiny_backbone(tiny_folder)
    backbone.offloaded, backbone.encoded_at_once = ("text_encoders", "vae"), 2
    backbone.load()
    pipeline, seen = backbone.loaded, []
    encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
    encode = backbone.encode_with

    def watched(of, prompts):
        seen.append((len(prompts), [device_of(network) for network in (*encoders, pipeline.vae)]))
        return backbone.blank_conditioning(len(prompts))

    backbone.encode_with = watched
    assert encode(pipeline, ["a"]).embeds.shape == backbone.blank_conditioning(1).embeds.shape
    with faked():
        for network in (*encoders, pipeline.vae):
            to_fake(network)
        backbone.to(FAKE_DEVICE)
        backbone.encode_prompts(["a", "b", "c"])
        assert seen == [(count, ["cuda", "cuda", "cpu"]) for count in (2, 1)]
        with backbone.at_work("vae"):
            assert [device_of(network) for network in (*encoders, pipeline.vae)] == ["cpu", "cpu", "cuda"]
        decode(backbone, torch.zeros(2, *backbone.latent_shape(), device=FAKE_DEVICE))
        assert device_of(pipeline.vae) == "cpu"


def to_fake(network: nn.Module) -> None:
    """Weights without numbers in place of its own; inside `faked`."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@pytest.fixture(scope="module")
def cold_start(tiny_folder, tmp_path_factory):
    return save_cold_start(tiny_folder, tmp_path_factory.mktemp("cold_start"))


class Networked(Redness):
    """With a network that only has to be there, and a record of what else is while it scores."""

    differentiable = True

    def __init__(self, name: str, others: list) -> None:
        self.name, self.network, self.others = name, nn.Linear(1, 1).requires_grad_(False), others
        others.append(self)
        self.seen: list[tuple[int, bool, list[str]]] = []

    def networks(self):
        return [self.network]

    def score(self, images, prompts, metadata):
        working = [reward.name for reward in self.others if reward._home is None or reward._home._uses]
        self.seen.append((len(images), images.requires_grad, working))
        return super().score(images, prompts, metadata)


def rewards():
    others: list = []
    made = [Networked(name, others) for name in ("one", "two", "three")]
    return RewardMixture(made, {"one": 1.0, "two": 0.5, "three": 0.0}, ["one", "two"])


@pytest.mark.slow
def test_a_run_of_stage_2_is_the_same_and_its_rewards_work_in_turn(tiny_folder, cold_start):
    states, logged, order = [], [], []
    for offload in (None, EVERYTHING):
        module = tiny_rtdmd_module(tiny_folder, cold_start, rewards=rewards(), offload=offload)
        metrics = train(module, steps=2).callback_metrics
        states.append(module.state_dict())
        logged.append({name: value for name, value in metrics.items() if not name.startswith("time/")})
        order.append({name: reward.seen for name, reward in module.rewards.rewards.items()})
    # To rounding: the prompts of the step are encoded in one batch instead of several.
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(logged[1], logged[0], rtol=1e-4, atol=1e-5)
    for name, seen in order[1].items():
        scored = [working for _, has_gradient, working in seen if not has_gradient]
        assert scored == [[name]] * 8  # four batches of two epochs, each while no other reward is on the device
        back_propagated = [working for _, has_gradient, working in seen if has_gradient]
        assert all(working == ["one", "two"] for working in back_propagated)
        assert bool(back_propagated) == (name != "three")


def test_stage_1_uses_its_autoencoder_for_images_alone(tiny_folder, monkeypatch):
    uses: dict[str, int] = defaultdict(int)
    at_work = PipelineBackbone.at_work

    def counted(self, part):
        uses[part] += 1
        return at_work(self, part)

    monkeypatch.setattr(PipelineBackbone, "at_work", counted)
    module = tiny_module(tiny_folder, offload=["text_encoders", "vae"], fake_update_ratio=2)
    train(module)
    assert dict(uses) == {"text_encoders": 2}  # the step's prompts, and the empty one of the teacher's guidance
    module.generate(["a red circle"], [0], seed=0)
    assert uses["vae"] == 1
