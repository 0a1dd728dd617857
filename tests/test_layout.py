"""What tests share lies in `tests/support`: no test imports a test, by a statement or by a dotted name in a config."""

import re

from tests.support.tiny import REPOSITORY

OF_A_TEST = re.compile(r"\btests\.(\w+\.)*test_\w+|^\s*from \.", re.MULTILINE)


def test_no_test_imports_a_test():
    files = (REPOSITORY / "tests").rglob("*.py")
    found = {str(file.relative_to(REPOSITORY)): OF_A_TEST.search(file.read_text()) for file in files}
    assert [f"{name}: {match[0]}" for name, match in found.items() if match] == []
