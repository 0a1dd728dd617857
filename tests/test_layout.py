"""The layout: commands at the root, files of a readable length, and no test that imports a test."""

import re

from rtdmd_lightning.cli import COMMANDS
from tests.support.tiny import REPOSITORY

OF_A_TEST = re.compile(r"\btests\.(\w+\.)*test_\w+|^\s*from \.", re.MULTILINE)


def test_no_test_imports_a_test():
    files = (REPOSITORY / "tests").rglob("*.py")
    found = {str(file.relative_to(REPOSITORY)): OF_A_TEST.search(file.read_text()) for file in files}
    assert [f"{name}: {match[0]}" for name, match in found.items() if match] == []


def test_the_files_at_the_packages_root_are_the_commands():
    names = {file.stem for file in (REPOSITORY / "rtdmd_lightning").glob("*.py")} - {"__init__", "cli"}
    assert names == set(COMMANDS)
    for name in names:
        assert "__main__" in (REPOSITORY / "rtdmd_lightning" / f"{name}.py").read_text()


def test_no_file_is_too_long_to_read_or_too_short_to_be_one():
    """Tables of words may be short."""
    lengths = {
        str(file.relative_to(REPOSITORY)): len(file.read_text().splitlines())
        for file in (REPOSITORY / "rtdmd_lightning").rglob("*.py")
        if file.name != "__init__.py"
    }
    assert {name: length for name, length in lengths.items() if length > 250} == {}
    short = {name for name, length in lengths.items() if length < 25}
    assert short <= {"rtdmd_lightning/geneval/vocabulary.py"}
