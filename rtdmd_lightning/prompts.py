"""Make or fetch the prompt sets that the configs name: `python -m rtdmd_lightning.prompts [NAME …] [--folder prompts]`."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rtdmd_lightning.data.prompt_sets import PROMPT_SETS, make_prompt_set
from rtdmd_lightning.utils.command_line import command_parser
from rtdmd_lightning.utils.errors import UserError, readable_errors
from rtdmd_lightning.utils.files import check_output


def main(arguments: list[str]) -> None:
    """The command. Exits with status 1 where a set could not be made."""
    parser = command_parser(prog="python -m rtdmd_lightning.prompts", description="Make or fetch prompt sets.")
    parser.add_argument("names", nargs="*", type=str, help=f"of {', '.join(PROMPT_SETS)}; all of them by default")
    parser.add_argument("--folder", type=Path, default=Path("prompts"), help="where the files go")
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in PROMPT_SETS:
            raise UserError(f"there is no prompt set {name!r}; known are {', '.join(PROMPT_SETS)}")
    check_output(options.folder, "--folder")
    table = Table("set", "file", "prompts")
    problems: list[str] = []
    for name in options.names or PROMPT_SETS:
        try:
            count = str(make_prompt_set(name, options.folder))
        except UserError as error:
            count, problems = "-", [*problems, str(error)]
        table.add_row(name, str(options.folder / PROMPT_SETS[name].target), count)
    Console().print(table)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    with readable_errors():
        main(sys.argv[1:])
