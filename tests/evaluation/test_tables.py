"""The Markdown of hand-made scores, letter by letter; results.json."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from rtdmd_lightning.evaluation.results import write_results
from rtdmd_lightning.evaluation.tables import to_markdown
from tests.support.scores import PROMPTS, SCORES, hand_made

GOLDEN = """\
## held-out: 4 prompts (prompts.jsonl)

mean ± standard error

|  | strict | clip |
| --- | ---: | ---: |
| teacher | 0.50 ± 0.29 | 0.250 ± 0.020 |
| cold \\| start | 0.50 ± 0.29 | 0.260 ± 0.020 |
| <RTDMD> | 0.75 ± 0.25 | 0.282 ± 0.083 |

paired difference to “teacher” [95% confidence interval]

|  | strict | clip |
| --- | ---: | ---: |
| cold \\| start | +0.00 [+0.00, +0.00] | **+0.01 [+0.01, +0.01]** |
| <RTDMD> | +0.25 [-1.27, +1.77] | +0.03 [-0.30, +0.36] |

strict by tag

|  | colors | counting | overall |
| --- | ---: | ---: | ---: |
| teacher | 0.50 | 0.50 | 0.50 |
| cold \\| start | 0.50 | 0.50 | 0.50 |
| <RTDMD> | 1.00 | 0.50 | 0.75 |

clip by tag

|  | colors | counting | overall |
| --- | ---: | ---: | ---: |
| teacher | 0.250 | 0.250 | 0.250 |
| cold \\| start | 0.260 | 0.260 | 0.260 |
| <RTDMD> | 0.300 | 0.265 | 0.282 |
"""


def test_markdown():
    assert to_markdown(hand_made()) == GOLDEN


def test_prompts_without_tags_have_no_tag_tables():
    assert to_markdown(hand_made(tags=False)) == GOLDEN[: GOLDEN.index("\nstrict by tag")]


def test_any_entry_may_be_the_baseline():
    text = to_markdown(hand_made(baseline="<RTDMD>"))
    assert "| teacher | -0.25 [-1.77, +1.27] | -0.03 [-0.36, +0.30] |" in text


def twice() -> dict[str, dict[str, list[float]]]:
    """Two images of every prompt: those of `SCORES`, and others."""
    rng = np.random.default_rng(0)
    return {e: {r: [*s, *rng.normal(size=4).tolist()] for r, s in by_reward.items()} for e, by_reward in SCORES.items()}


def test_statistics_of_several_images_are_over_prompts():
    """Mean, error, interval and tags against scipy on the prompts' means."""
    scores = twice()
    text = to_markdown(hand_made(scores=scores))
    assert text.startswith("## held-out: 4 prompts, 2 images each (prompts.jsonl)\n")
    means = {entry: np.array(by_reward["clip"]).reshape(2, 4).mean(axis=0) for entry, by_reward in scores.items()}
    student, teacher = means["<RTDMD>"], means["teacher"]
    low, high = stats.ttest_rel(student, teacher).confidence_interval(0.95)
    assert f" {student.mean():.2f} ± {student.std(ddof=1) / 2:.2f} |\n" in text
    assert f" {(student - teacher).mean():+.2f} [{low:+.2f}, {high:+.2f}] |\n" in text
    tags = student[:2].mean(), student[2:].mean()
    by_tag = text[text.index("clip by tag") :]
    assert f"| <RTDMD> | {tags[0]:.2f} | {tags[1]:.2f} | {np.mean(tags):.2f} |" in by_tag


def test_what_is_published_stands_below_the_entry_in_the_first_table_alone():
    found = to_markdown(hand_made(tags=False, published={"cold | start": {"clip": 0.3161}}))
    row = "| cold \\| start | 0.50 ± 0.29 | 0.260 ± 0.020 |\n"
    plain = GOLDEN[: GOLDEN.index("\nstrict by tag")]
    head, differences = plain.split("\npaired")
    assert found == (
        head.replace(row, row + "| RTDMD (paper) |  | 0.3161 |\n")
        + "\npaper: arXiv 2605.26108, tables 1 and 2, which do not say the resolution; "
        + "the authors' evaluation configs have 1024 px\n"
        + "\npaired"
        + differences
    )


def test_rewards_options_are_told_below_the_scores():
    """Those that are set; none of the difference's table."""
    options = {"weights": None, "resize": "bicubic", "batch_size": 8}
    rewards = {"strict": {"class_path": "x.Strict"}, "clip": {"class_path": "x.Clip", "init_args": options}}
    text = to_markdown(hand_made(rewards=rewards))
    assert text.count("scored with") == 1
    assert " ± 0.083 |\n\nscored with clip (resize=bicubic, batch_size=8)\n\npaired difference" in text


def test_results_json_holds_the_settings_of_the_rewards_and_what_is_published(tmp_path):
    rewards = {"strict": {"class_path": "x.S"}, "clip": {"class_path": "x.C", "init_args": {"file": Path("a/b")}}}
    published = {"<RTDMD>": {"clip": 0.3}}
    write_results(hand_made(scores=twice(), rewards=rewards, published=published), tmp_path / "results.json")
    found = json.loads((tmp_path / "results.json").read_text())["sets"]["held-out"]
    assert found["rewards"] == rewards | {"clip": {"class_path": "x.C", "init_args": {"file": "a/b"}}}
    assert (found["published"], found["prompts"], found["images_per_prompt"]) == (published, 4, 2)
    assert len(found["images"]) == 3 * 8
    second = found["images"][8 + 4 + 1]
    assert (second["entry"], second["index"], second["prompt"]) == ("cold | start", 5, PROMPTS[1])
    assert second["scores"]["clip"] == pytest.approx(twice()["cold | start"]["clip"][5], rel=1e-12)


def test_results_json_holds_every_every_score_of_every_image(tmp_path):
    write_results(hand_made(), tmp_path / "results.json")
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["baseline"] == "teacher" and list(document["entries"]) == list(SCORES)
    images = document["sets"]["held-out"]["images"]
    assert len(images) == 12
    for row in images:
        assert row["prompt"] == PROMPTS[row["index"]]
        assert row["scores"] == {reward: of_all[row["index"]] for reward, of_all in SCORES[row["entry"]].items()}
    assert images[5] == {
        "entry": "cold | start",
        "index": 1,
        "prompt": PROMPTS[1],
        "tag": "colors",
        "file": "images/1_1.png",
        "scores": {"strict": 0.0, "clip": 0.21},
    }
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]  # nothing half-written is left
