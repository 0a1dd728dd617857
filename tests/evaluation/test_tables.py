"""The Markdown of hand-made scores, letter by letter; results.json."""

import json

from rtdmd_lightning.evaluation.results import write_results
from rtdmd_lightning.evaluation.tables import to_markdown
from tests.evaluation.scores import PROMPTS, SCORES, hand_made

GOLDEN = """\
## held-out: 4 prompts (prompts.jsonl)

mean ± standard error

|  | strict | clip |
| --- | ---: | ---: |
| teacher | 0.5000 ± 0.2887 | 0.2500 ± 0.0204 |
| cold \\| start | 0.5000 ± 0.2887 | 0.2600 ± 0.0204 |
| <RTDMD> | 0.7500 ± 0.2500 | 0.2825 ± 0.0829 |

paired difference to “teacher” [95% confidence interval]

|  | strict | clip |
| --- | ---: | ---: |
| cold \\| start | +0.0000 [+0.0000, +0.0000] | **+0.0100 [+0.0100, +0.0100]** |
| <RTDMD> | +0.2500 [-1.2735, +1.7735] | +0.0325 [-0.2955, +0.3605] |

strict by tag

|  | colors | counting | overall |
| --- | ---: | ---: | ---: |
| teacher | 0.5000 | 0.5000 | 0.5000 |
| cold \\| start | 0.5000 | 0.5000 | 0.5000 |
| <RTDMD> | 1.0000 | 0.5000 | 0.7500 |

clip by tag

|  | colors | counting | overall |
| --- | ---: | ---: | ---: |
| teacher | 0.2500 | 0.2500 | 0.2500 |
| cold \\| start | 0.2600 | 0.2600 | 0.2600 |
| <RTDMD> | 0.3000 | 0.2650 | 0.2825 |
"""


def test_markdown():
    assert to_markdown(hand_made()) == GOLDEN


def test_prompts_without_tags_have_no_tag_tables():
    assert to_markdown(hand_made(tags=False)) == GOLDEN[: GOLDEN.index("\nstrict by tag")]


def test_any_entry_may_be_the_baseline():
    text = to_markdown(hand_made(baseline="<RTDMD>"))
    assert "| teacher | -0.2500 [-1.7735, +1.2735] | -0.0325 [-0.3605, +0.2955] |" in text


def test_results_json_holds_every_score_of_every_image(tmp_path):
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
