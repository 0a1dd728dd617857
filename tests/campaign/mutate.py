"""Break the code in one place at a time and see whether a test fails: `python -m tests.campaign.mutate [--only WORD]`.

Each mutation of `mutations.py` is made in a copy of the repository and runs the one or two test files that ought to catch it.
"""

import argparse
import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.campaign.mutations import MUTATIONS, Mutation
from tests.campaign.table import markdown

REPOSITORY = Path(__file__).parents[2]
PACKAGE = "rtdmd_lightning"
SECONDS = 600  # for the tests of one mutation
LIBRARIES = ("torch", "torchvision", "lightning.pytorch.cli", "diffusers", "transformers", "peft", "torchmetrics")


def copy_of_the_repository(folder: Path) -> Path:
    """What git knows of, and what is new; `checkpoints/` is only read and stays where it is."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=REPOSITORY, text=True).splitlines():
        if not name.startswith("checkpoints/") and (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    (folder / "checkpoints").symlink_to(REPOSITORY / "checkpoints")
    return folder


def caught(mutation: Mutation, copy: Path) -> tuple[bool, str]:
    """Whether a test fails, and the first that did."""
    file, said = copy / PACKAGE / mutation.file, copy / "said"
    before = file.read_text(encoding="utf-8")
    assert before.count(mutation.old) == 1, f"{mutation.file} has {before.count(mutation.old)} times {mutation.old!r}"
    file.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        process = os.fork()
        if process == 0:
            test(shlex.split(mutation.tests), copy, said)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    finally:
        file.write_text(before, encoding="utf-8")
    text = said.read_text(errors="replace")
    if status == -signal.SIGALRM:
        return True, f"none has ended within {SECONDS} seconds"
    if status < 0:
        return True, f"their process died of {signal.Signals(-status).name}"
    assert status in (0, 1), text[-3000:]  # 2 and more: no test was run
    failed = [line.split(" - ")[0] for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return status == 1, failed[0].rpartition("::")[2] if failed else ""


def test(arguments: list[str], copy: Path, said: Path) -> None:
    """In a fork, which has the libraries in memory: the tests, on the copy's code. It does not return."""
    output = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.alarm(SECONDS)
    os.chdir(copy)
    os.environ.update(PYTHONPATH=str(copy), OMP_NUM_THREADS="1")
    sys.path[:] = [str(copy), *(place for place in sys.path if Path(place).resolve() != REPOSITORY)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    status = 3
    try:
        import pytest

        status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *arguments]))
    finally:
        os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutations of files whose path holds this")
    parser.add_argument("--first", type=int, default=1, help="number of the first one, counted from 1")
    parser.add_argument("--last", type=int, default=len(MUTATIONS), help="number of the last one")
    options = parser.parse_args()
    chosen = [one for one in MUTATIONS[options.first - 1 : options.last] if options.only in one.file]
    for library in LIBRARIES:
        importlib.import_module(library)
    sys.dont_write_bytecode = True
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_the_repository(Path(folder))
        for mutation in chosen:
            begun = time.monotonic()
            is_caught, by = caught(mutation, copy)
            rows.append([mutation.file, mutation.breaks, by if is_caught else "SURVIVED"])
            print(f"{time.monotonic() - begun:4.0f} s  {'  '.join(rows[-1])}", flush=True)
    print(markdown(["file", "what is broken", "first test that fails"], rows))
    survived = sum(row[-1] == "SURVIVED" for row in rows)
    print(f"{len(rows) - survived} of {len(rows)} caught")
    sys.exit(min(survived, 1))


if __name__ == "__main__":
    main()
