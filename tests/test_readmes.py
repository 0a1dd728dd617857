"""READMEs name files that exist, and those with a reading order name every file of their folder."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE, TESTS = REPOSITORY / "rtdmd_lightning", REPOSITORY / "tests"
FOLDERS = ("rtdmd_lightning", "configs", "tests", "notebooks")
READMES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "THIRD_PARTY.md")),
    *sorted(path for name in FOLDERS for path in (REPOSITORY / name).rglob("README.md")),
]
EXAMPLES = {"my_rewards.py"}  # a reader's own

every_readme = pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPOSITORY)))


def files_named(text: str) -> set[str]:
    """Python files in code font; a star in them is any text."""
    return set(re.findall(r"`([\w./*-]+\.py)`", text))


@every_readme
def test_every_file_that_is_named_exists(readme):
    """A name may begin at the README's folder, at the folder of its tests, at the package or at the repository."""
    folders = (readme.parent, TESTS / readme.parent.name, PACKAGE, REPOSITORY)
    for name in files_named(readme.read_text(encoding="utf-8")) - EXAMPLES:
        assert any(list(folder.glob(name)) for folder in folders), name


@every_readme
def test_every_link_into_the_repository_leads_somewhere(readme):
    for link in re.findall(r"\]\(([^()#\s]+)", readme.read_text(encoding="utf-8")):
        assert link.startswith("http") or (readme.parent / link).exists(), link


@every_readme
def test_a_reading_order_has_every_file_of_its_folder(readme):
    text = readme.read_text(encoding="utf-8")
    if "## Reading order" in text:
        files = {path.name for path in readme.parent.glob("*.py")} - {"__init__.py"}
        assert files <= files_named(text), files - files_named(text)
