"""Names that nothing has, and values of a wrong type, are refused before Lightning is imported; the help lists what there is."""

import io

import pytest
from rich.console import Console

from rtdmd_lightning.fitting.help import print_help
from rtdmd_lightning.fitting.options import check_options, check_prompts
from rtdmd_lightning.utils.configuration import split_arguments
from rtdmd_lightning.utils.errors import UserError
from rtdmd_lightning.utils.signatures import signature
from tests.support.tiny import REPOSITORY

CONFIG = str(REPOSITORY / "configs/rtdmd/tiny_sd3.yaml")


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("--model.batch_sise=3", "--model.batch_size"),
        ("--model.lora.rnak=3", "--model.lora.rank"),
        ("--model.init_args.policy.clip_rang=3", "--model.policy.clip_range"),
        ("--model.backbone.resolutoin=3", "--model.backbone.resolution"),  # the constructor of a base class
        ("--model.backbone.uset5=false", "--model.backbone.use_t5"),
        ("--callbacks.evaluation.every_n_update=3", "--callbacks.evaluation.every_n_updates"),
        ("--data.prompst=3", "--data.prompts"),
        ("--modle.batch_size=3", "--model.batch_size"),  # what stood after the name goes on
        ("--model.bacbone.quantization=nf4", "--model.backbone.quantization"),
        ("--run_dri=3", "--run_dir"),
        ("--trainer.max_step=3", "--trainer.max_steps"),
        ("--callbacks.last.every_n_train_step=3", "--callbacks.last.every_n_train_steps"),
    ],
)
def test_a_mistyped_option_is_told_as_typed_with_the_nearest(option, nearest):
    with pytest.raises(UserError) as told:
        check_options(*split_arguments(["--config", CONFIG, option]))
    assert str(told.value).startswith(f"{option}: ") and f"did you mean {nearest}?" in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--model.batch_size=three"], "--model.batch_size=three must be a whole number; for example 48"),
        (["--model.batch_size", "3.5"], "--model.batch_size=3.5 must be a whole number"),
        (["--model.policy.clip_range=x"], "--model.policy.clip_range=x must be a number"),
        (["--model.init_args.sub_interval=3"], "--model.sub_interval=3 must be true or false"),
        (["--model.guidance_scale=[1]"], "must be a list of 2; for example [3.0, 3.0]"),
        (["--model.micro_batch_size=x"], "must be a whole number or null"),
        (["--model.consistency.transition=x"], "must be cps or posterior"),
        (["--float32_matmul_precision=x"], "must be highest, high or medium"),
        (["--trainer.max_steps=x"], "--trainer.max_steps=x must be a whole number"),
    ],
)
def test_a_value_of_a_wrong_type_is_told_as_typed_with_what_is_wanted(arguments, wanted):
    with pytest.raises(UserError) as told:
        check_options(*split_arguments(["--config", CONFIG, *arguments]))
    assert wanted in str(told.value).replace("--model.init_args.", "--model.")


@pytest.mark.parametrize("argument", ["--model.batch_size=0x10", "--model.guidance_scale=[1,2]", "--ckpt_path=null"])
def test_what_the_parser_takes_is_not_refused(argument):
    check_options(*split_arguments(["--config", CONFIG, argument]))


def test_a_value_of_a_config_too(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("model: {init_args: {policy: {clip_range: wide}}}")
    with pytest.raises(UserError, match=r"config's model\.policy\.clip_range: wide must be a number; for example"):
        check_options(*split_arguments(["--config", CONFIG, "--config", str(other)]))


def test_a_mistyped_key_of_a_config_too(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("model: {init_args: {policy: {clip_rang: 1.0}}}")
    with pytest.raises(UserError, match=r"model\.policy\.clip_rang.* did you mean model\.policy\.clip_range\?"):
        check_options(*split_arguments(["--config", CONFIG, "--config", str(other)]))


@pytest.mark.parametrize(
    "options",
    [
        ["--model.backbone=rtdmd_lightning.models.FluxBackbone", "--model.backbone.guidance=3.5"],
        ["--model.backbone.class_path", "rtdmd_lightning.models.FluxBackbone", "--model.backbone.guidance", "3.5"],
        ["--model=elsewhere.Module", "--model.whatever=1"],
        ["--callbacks.mine=elsewhere.Callback", "--callbacks.mine.whatever=1"],
        ["--callbacks.last.every_n_train_steps=3", "--model.rewards.rewards+=Own"],
        ["--trainer.strategy=lightning.pytorch.strategies.DDPStrategy", "--trainer.strategy.static_graph=true"],
        ["--print_config", "--seed_everything=3", "--model.help=ACDMDModule"],
    ],
)
def test_what_is_not_known_here_is_left_to_the_parser(options):
    """A class that an option chooses takes the place of the config's."""
    check_options(*split_arguments(["--config", CONFIG, *options]))


def test_a_run_without_a_config_is_told_one():
    with pytest.raises(UserError, match=r"--config configs/cold_start/tiny_sd3\.yaml"):
        check_options({}, [])


def test_a_prompt_file_that_is_not_there_is_told_with_what_makes_it():
    with pytest.raises(UserError, match=r"'nowhere\.txt'.*make prompts"):
        check_prompts({"data": {"prompts": "shapes:train"}}, ["--data.prompts", "nowhere.txt"])
    check_prompts({"data": {"prompts": "nowhere.txt"}}, ["--data.prompts=shapes:train"])


def test_the_help_of_a_config_has_its_classes_options_with_defaults_and_values(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    stream = io.StringIO()
    print_help(["--config", CONFIG, "--help"], Console(file=stream, width=200))
    text = stream.getvalue()
    for option in ("--run_dir", "--data.prompts", "--model.policy.clip_range", "--callbacks.export.name"):
        assert option in text
    line = next(line for line in text.splitlines() if "--model.images_per_prompt" in line)
    assert "K, the size of a group" in line and "default: 24; here: 8" in line


def test_a_signature_is_that_of_the_class():
    """Against the imported one: names, their order and defaults, of a class and of one that inherits its constructor's rest."""
    import inspect

    from rtdmd_lightning.models import FluxBackbone
    from rtdmd_lightning.modules import RTDMDModule

    known = signature("rtdmd_lightning.modules.RTDMDModule")
    parameters = inspect.signature(RTDMDModule.__init__).parameters
    assert list(known.options) == list(parameters)[1:]
    for name, option in known.options.items():
        assert (option.default is None) == (parameters[name].default is inspect.Parameter.empty)
        assert option.meaning
    assert known.options["lora"].of_class.endswith("LoraSettings")
    of_flux = signature("rtdmd_lightning.models.FluxBackbone").options
    own = [name for name, it in inspect.signature(FluxBackbone.__init__).parameters.items() if it.kind.value == 1]
    assert set(own[1:]) < set(of_flux) and "gradient_checkpointing" in of_flux
    assert signature("torch.nn.Linear") is signature("nowhere") is None
