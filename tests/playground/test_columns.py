"""The page's columns: each draws as a model of its own would, from one base in memory."""

import pytest
import torch

from rtdmd_lightning.models import FluxBackbone
from rtdmd_lightning.playground import toy
from rtdmd_lightning.playground.columns import Columns, Teacher, parse_steps
from rtdmd_lightning.roles.inference import InferenceModel
from rtdmd_lightning.roles.lora import adapter_state_dict
from rtdmd_lightning.roles.roles import EMA, GENERATOR
from rtdmd_lightning.utils.configuration import compose
from rtdmd_lightning.utils.errors import UserError
from tests.support.tiny import REPOSITORY, tiny_backbone, tiny_module
from tests.support.tiny_backbones import OPTIONS, save_tiny_flux

PROMPT, SEED, STEPS, ETA = "a photo of a red circle", 3, [1000, 600, 300], 0.5


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    module = tiny_module(tiny_folder)
    for role in (GENERATOR, EMA):
        (folder / role).mkdir()
        torch.save(adapter_state_dict(module.roles.transformer, role), folder / role / "generator_ema.pt")
    return [str(folder / role / "generator_ema.pt") for role in (GENERATOR, EMA)]


def test_each_column_is_what_a_model_of_its_own_draws(tiny_folder, adapters):
    columns = Columns(tiny_backbone(tiny_folder), adapters, Teacher(5, 2.0))
    columns.load(torch.device("cpu"))
    drawn = [list(columns.draw(PROMPT, SEED, STEPS, ETA)) for _ in range(2)]  # again, after the last column's adapters
    expected = []
    for stack, steps, guidance_scale, eta in [
        ([], 5, 2.0, 0.0),
        ([], 3, None, 0.0),
        (adapters[:1], STEPS, None, ETA),
        (adapters, STEPS, None, ETA),
    ]:
        model = InferenceModel(tiny_backbone(tiny_folder), stack, steps, guidance_scale, eta)
        model.load(torch.device("cpu"))
        expected.append(model.generate([PROMPT], [0], seed=SEED)[0])
    for images in drawn:
        torch.testing.assert_close(images, expected, rtol=0, atol=0)
    assert len({image.numpy().tobytes() for image in expected}) == len(columns.titles) == 4


def test_a_base_with_a_guidance_input_has_its_own_in_few_steps(tmp_path):
    """FLUX.1-dev's 3.5; and without adapters there are two columns."""
    save_tiny_flux(tmp_path, guidance_embeds=True)
    columns = Columns(FluxBackbone(str(tmp_path), **OPTIONS), [], Teacher(3, 5.0))
    columns.load(torch.device("cpu"))
    drawn = list(columns.draw(PROMPT, SEED, 2, ETA))
    expected = []
    for steps, guidance_scale in [(3, 5.0), (2, 3.5)]:
        model = InferenceModel(FluxBackbone(str(tmp_path), **OPTIONS), [], steps, guidance_scale, eta=0.0)
        model.load(torch.device("cpu"))
        expected.append(model.generate([PROMPT], [0], seed=SEED)[0])
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0)


def test_a_number_of_steps_is_evenly_spaced_for_students_and_the_pipelines_for_the_teacher(tiny_folder, adapters):
    columns = Columns(tiny_backbone(tiny_folder), adapters[:1], Teacher(5, 2.0))
    columns.load(torch.device("cpu"))
    by_number, by_list = (list(columns.draw(PROMPT, SEED, steps, ETA)) for steps in (4, [1000, 750, 500, 250]))
    torch.testing.assert_close(by_number, by_list, rtol=0, atol=0)


def test_columns_are_called_by_the_adapters_folders(tiny_folder, adapters):
    titles = Columns(tiny_backbone(tiny_folder), [adapters[0], "runs/x/rtdmd"], Teacher(28, 4.5)).titles
    assert titles == ["teacher, 28 steps, guidance 4.5", "teacher, few steps", GENERATOR, "+ rtdmd"]


@pytest.mark.parametrize(("text", "steps"), [("4", 4), ("[1000, 500]", [1000, 500])])
def test_steps_are_typed_as_on_a_command_line(text, steps):
    assert parse_steps(text) == steps


@pytest.mark.parametrize("text", ["", "four", "[]", "[1000, x]", "4.5", "true", "[1000"])
def test_what_is_no_steps_is_told(text):
    with pytest.raises(UserError, match="steps must be a number, or a list"):
        parse_steps(text)


def test_the_toy_world_is_drawn_as_it_is_evaluated(monkeypatch):
    entries = compose(REPOSITORY / "configs/evaluate/tiny_sd3.yaml")["entries"]
    last = entries["RTDMD"]
    given = {"pretrained": "checkpoints/tiny-sd3", "resolution": toy.RESOLUTION, **toy.BACKBONE}
    assert last["backbone"]["init_args"] == given
    assert (last["steps"], last["eta"]) == (toy.STEPS, toy.ETA)
    assert [str(REPOSITORY / path) for path in last["adapters"]] == toy.ADAPTERS


def test_what_the_toy_world_does_not_know_is_told_in_words():
    for prompt in toy.examples():
        toy.check_prompt(prompt)
    with pytest.raises(UserError, match=r"'corgi'.*circle.*for example") as told:
        toy.check_prompt("a photo of a corgi")
    assert "'photo'" not in str(told.value)
    for prompt in ("", " ".join(["red"] * 12)):
        with pytest.raises(UserError, match="1 to 11 words"):
            toy.check_prompt(prompt)
