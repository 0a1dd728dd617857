"""The method's README against what cites it, the functions that it names, the options, and the paper's constants."""

import inspect
import json
import re
from pathlib import Path

import pytest

from rtdmd_lightning import fit, objectives

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "rtdmd_lightning/method/README.md").read_text(encoding="utf-8")
PAPER = json.loads((REPOSITORY / "tests/data/paper_constants.json").read_text())
STAGE_1, STAGE_2 = PAPER["stage1_common"], PAPER["stage2_common"]
WORDS = {"-": None, "yes": True, "no": False}
NUMBER = r"\d+(?:\.\d+)?"
GAP = r"[\s#]+"  # a citation may go over the end of a line, also of a comment's
CITATION = re.compile(
    rf"METHOD{GAP}(?:sections?{GAP}|§)({NUMBER}(?:(?:,|{GAP}and|{GAP}to){GAP}{NUMBER})*)"
    rf"(?:,{GAP}items?{GAP}(\d(?:(?:,|{GAP}and|{GAP}to){GAP}\d)*))?"
)
SOURCES = {
    "rtdmd_lightning": ("py", "md", "json"), "configs": ("yaml", "md"), "tests": ("py", "md"), "notebooks": ("md", "ipynb"),
}  # fmt: skip


def sections() -> dict[str, str]:
    """Number of a heading to the text below it, up to the next numbered one."""
    parts = re.split(rf"^#+ ({NUMBER})\.? .*$", README, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def citations() -> list[tuple[str, str, str | None]]:
    """Every file that cites the method, with the sections and the items."""
    found = [
        path for folder, kinds in SOURCES.items() for kind in kinds for path in (REPOSITORY / folder).rglob(f"*.{kind}")
    ]
    return [
        (str(path.relative_to(REPOSITORY)), *match.groups())
        for path in [REPOSITORY / "README.md", *sorted(found)]
        for match in CITATION.finditer(path.read_text(encoding="utf-8"))
    ]


def formulas() -> dict[str, tuple[str, str]]:
    """The table of functions: name to file and section."""
    rows = re.findall(r"^\| (`.*) \| `(\w+\.py)` \| (\S+) \|$", README, flags=re.MULTILINE)
    return {name: (file, section) for names, file, section in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_sections_are_numbered_as_they_are_cited():
    assert list(sections()) == ["0", "0.1", "1", "2", "3", "3.1", "3.2", "3.3", "3.4", "4", "5", "5.1", "6", "7"]


def test_every_section_and_item_that_is_cited_exists():
    known, found = sections(), citations()
    assert len(found) > 100 and {path.split("/")[0] for path, *_ in found} >= {"rtdmd_lightning", "configs", "tests"}
    for path, cited, items in found:
        numbers = re.findall(NUMBER, cited)
        assert set(numbers) <= known.keys(), (path, cited)
        there = set(re.findall(r"^(\d)\. ", known[numbers[-1]], flags=re.MULTILINE))
        assert set(re.findall(r"\d", items or "")) <= there, (path, cited, items)


@pytest.mark.parametrize(
    ("text", "cited"),
    [
        ("(METHOD section 4, item 3).", ("4", "3")),
        ("METHOD sections 3.4 and 4, items 2, 3 and 5", ("3.4 and 4", "2, 3 and 5")),
        ("# as METHOD section\n    # 3.1. Then", ("3.1", None)),
        ("METHOD §4 weights", ("4", None)),
    ],
)
def test_citations_are_recognised(text, cited):
    assert CITATION.search(text).groups() == cited


def test_the_table_of_functions_is_complete_and_right():
    """All that `objectives` exports, in the file that the table says; each docstring cites the section."""
    table = formulas()
    assert table.keys() == set(objectives.__all__)
    for name, (file, section) in table.items():
        function = getattr(objectives, name)
        assert Path(inspect.getsourcefile(function)).name == file, name
        cited = {number for groups in CITATION.findall(function.__doc__) for number in re.findall(NUMBER, groups[0])}
        assert section in cited, name


def test_every_function_in_the_text_exists():
    named = set(re.findall(r"`(\w+)\(\)`", README))
    assert len(named) > 20 and named <= set(objectives.__all__), named - set(objectives.__all__)


def test_every_option_in_the_text_exists(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    one_process = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--data.prompts=shapes:train"]
    options: set[str] = set()
    for stage in ("cold_start", "rtdmd"):
        config = fit.parse([f"--config=configs/{stage}/sd35m.yaml", *one_process]).config.as_dict()
        options |= set(names_in(config["model"]))
    named = set(re.findall(r"`([a-z_]+): [a-z_0-9.]+`", README))
    assert len(named) > 8 and named <= options, named - options


def names_in(value) -> list[str]:
    """Every key of a nested mapping."""
    return [name for key, entry in value.items() for name in (key, *names_in(entry))] if isinstance(value, dict) else []


ROWS = {
    "resolution in training": lambda model: model["resolution"],
    "teacher's guidance scale": lambda model: model["teacher_guidance"],
    "guidance input of generator and fake score": lambda model: model["student_guidance_input"],
    "text tokens (T5's, or the one encoder's)": lambda model: model["text_tokens"],
    "stage 1: learning rate of the generator": lambda model: model["stage1"]["lr_generator"],
    "stage 1: learning rate of the fake score": lambda model: model["stage1"]["lr_fake"],
    "stage 1: batch per GPU x GPUs": lambda _: [STAGE_1["batch_per_gpu"], STAGE_1["gpus"]],
    "stage 2: learning rate of the fake score": lambda model: model["stage2"]["lr_fake"],
    "stage 2: images per prompt $K$": lambda model: model["stage2"]["images_per_prompt"],
    "stage 2: batch per GPU x micro-batches x GPUs": lambda model: [
        model["stage2"]["batch_per_gpu"], STAGE_2["micro_batches_per_gpu"], model["stage2"]["gpus"],
    ],
    "stage 2: consistency regulariser": lambda model: model["stage2"]["consistency"],
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_the_constants_by_backbone_are_the_papers(row):
    line = next(line for line in README.splitlines() if line.startswith(f"| {row} |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")[1:]]
    assert [value_of(cell) for cell in cells] == [ROWS[row](model) for model in PAPER["models"].values()]


def value_of(cell: str) -> float | list[int] | bool | None:
    if cell in WORDS:
        return WORDS[cell]
    return [int(factor) for factor in cell.split(" x ")] if " x " in cell else float(cell)
