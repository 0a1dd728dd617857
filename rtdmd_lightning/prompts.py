"""Make or fetch the prompt sets that the configs name: `rtdmd prompts [NAME …] [--folder prompts]`."""

if __name__ == "__main__":  # neither a help text nor a mistyped option waits for the imports below
    from rtdmd_lightning.cli import before_imports

    before_imports("prompts")

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rtdmd_lightning.data.prompt_sets import PROMPT_SETS, make_prompt_set
from rtdmd_lightning.utils.command_line import command_parser
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.files import check_output


def prompts(names: Sequence[str] = (), folder: Path = Path("prompts")) -> None:
    """Make or fetch prompt sets. Exits with status 1 where one could not be made.

    Args:
        names: of the sets; by default all. A name that there is not is told those that there are.
        folder: where the files go.
    """
    for name in names:
        if name not in PROMPT_SETS:
            raise UserError(f"there is no prompt set {name!r}; known are {', '.join(PROMPT_SETS)}")
    check_output(folder, "--folder")
    table = Table("set", "file", "prompts")
    problems: list[str] = []
    for name in names or PROMPT_SETS:
        try:
            count = str(make_prompt_set(name, folder))
        except UserError as error:
            count, problems = "-", [*problems, str(error)]
        table.add_row(name, str(folder / PROMPT_SETS[name].target), count)
    Console().print(table)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)


def main(arguments: list[str]) -> None:
    parser = command_parser()
    parser.add_argument("names", nargs="*", type=str)
    parser.add_function_arguments(prompts, skip={"names"})
    prompts(**parser.parse_args(arguments).as_dict())


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
