"""The paper's figures: as METHOD section 7 has them, and shown for no other model, kind or prompt set."""

import pytest

from rtdmd_lightning.evaluation.published import FACTS, ROWS, published_scores
from rtdmd_lightning.geneval.prompts import test_prompts as geneval_prompts
from rtdmd_lightning.utils.configuration import compose
from tests.support.tiny import REPOSITORY

SD3M, KLEIN = "stabilityai/stable-diffusion-3-medium-diffusers", "black-forest-labs/FLUX.2-klein-base-4B"
NAMES = ("clipscore", "aesthetic", "pickscore", "hpsv2", "imagereward")
METHOD_7 = {
    (SD3M, "teacher", "DrawBench"): dict(zip(NAMES, (0.2936, 5.5711, 22.3236, 0.2810, 1.0759), strict=True)),
    (SD3M, "RTDMD", "DrawBench"): dict(zip(NAMES, (0.3161, 5.9642, 22.8593, 0.3211, 1.3024), strict=True)),
    (KLEIN, "RTDMD", "DrawBench"): dict(zip(NAMES, (0.3219, 5.7746, 23.9642, 0.3516, 1.3712), strict=True)),
    (KLEIN, "RTDMD", "HPSv3"): {"hpsv3": 15.5772},
    (KLEIN, "RTDMD", "GenEval"): {"geneval": 0.9046},
    (KLEIN, "RTDMD", "GenEval2"): {"geneval2": 0.2755},
    (KLEIN, "RTDMD", "OCR"): {"ocr": 0.6858},
}


def entry(base: str, kind: str | None) -> dict:
    return {"backbone": {"init_args": {"pretrained": base}}, "published": kind}


def test_the_figures_are_those_of_method_7():
    assert {(row.base, row.kind, row.prompt_set): row.scores for row in ROWS} == METHOD_7
    assert {(row.kind, row.nfe) for row in ROWS} == {("teacher", 100), ("RTDMD", 4)}
    assert FACTS["prompts"]["GenEval"] == len(geneval_prompts())


def test_they_are_shown_by_the_shipped_configs_and_by_the_right_entries_alone():
    found = {}
    for path in sorted((REPOSITORY / "configs/evaluate").glob("*.yaml")):
        config = compose(path)
        for name, settings in config.get("entries", {}).items():
            for prompt_set, options in config["sets"].items():
                rewards = {reward["class_path"].split(".")[2] for reward in options["rewards"]}
                count = FACTS["prompts"].get(prompt_set, 300)
                scores = published_scores({"published": None} | settings, prompt_set, count, rewards)
                if scores:
                    key = settings["backbone"]["init_args"]["pretrained"], name, prompt_set
                    assert key not in found
                    found[key] = scores
    assert found == METHOD_7  # the entries are named like the kinds


@pytest.mark.parametrize(
    ("settings", "prompt_set", "prompts"),
    [
        (entry(SD3M, None), "DrawBench", 200),
        (entry("someone/else", "RTDMD"), "DrawBench", 200),
        (entry(KLEIN, "teacher"), "DrawBench", 200),
        (entry(SD3M, "RTDMD"), "OCR", 1018),
        (entry(SD3M, "RTDMD"), "DrawBench", 20),
        (entry(SD3M, "RTDMD"), "my prompts", 200),
    ],
    ids=["no kind", "another base", "not published", "not on this set", "a part of the set", "another set"],
)
def test_nothing_is_shown_for_what_was_not_published(settings, prompt_set, prompts):
    assert published_scores(settings, prompt_set, prompts, [*NAMES, "ocr"]) == {}


def test_only_rewards_that_were_asked_for():
    assert published_scores(entry(SD3M, "RTDMD"), "DrawBench", 200, ["hpsv2", "ocr"]) == {"hpsv2": 0.3211}
