"""Configs made of small files, and the one sentence that a mistake in them earns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from rtdmd_lightning.utils.command_line import run_command
from rtdmd_lightning.utils.configuration import compose, expand_config_arguments
from rtdmd_lightning.utils.errors import DEBUG_VARIABLE, UserError, readable_errors
from rtdmd_lightning.utils.yaml_text import read_yaml

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path):
    """Write a file, folders included; return its path."""

    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return _write


def test_a_file_without_defaults_is_itself(write):
    path = write("a.yaml", "model: {rate: 1.0e-4, steps: [1, 2], name: null}\nseed: 3")
    assert compose(path) == {"model": {"rate": 1e-4, "steps": [1, 2], "name": None}, "seed": 3}


def test_mappings_are_merged_key_by_key_and_everything_else_replaced(write):
    write("base.yaml", "model: {rate: 1, steps: [1, 2, 3], nested: {a: 1, b: 2}}\nseed: 3\nkept: [4]")
    path = write("a.yaml", "defaults: [base.yaml]\nmodel: {steps: [9], nested: {b: 5, c: 6}}\nseed: null")
    assert compose(path) == {
        "model": {"rate": 1, "steps": [9], "nested": {"a": 1, "b": 5, "c": 6}},
        "seed": None,
        "kept": [4],
    }


@pytest.mark.parametrize(("base", "value"), [("{b: 1}", 3), ("{b: 1}", [1, 2]), ("3", {"b": 1}), ("[1]", {"b": 1})])
def test_what_is_not_two_mappings_is_replaced(write, base, value):
    write("base.yaml", f"a: {base}")
    assert compose(write("a.yaml", yaml.safe_dump({"defaults": ["base.yaml"], "a": value}))) == {"a": value}


def test_later_defaults_win_and_the_file_itself_wins_over_all(write):
    write("first.yaml", "a: 1\nb: 1\nc: 1")
    write("second.yaml", "a: 2\nb: 2")
    for defaults in ("a: 3\ndefaults: [first.yaml, second.yaml]", "defaults: [first.yaml, second.yaml]\na: 3"):
        assert compose(write("a.yaml", defaults)) == {"a": 3, "b": 2, "c": 1}
    assert compose(write("a.yaml", "defaults: [second.yaml, first.yaml]")) == {"a": 1, "b": 1, "c": 1}


def test_defaults_are_merged_depth_first(write):
    """A default's own defaults come before it and before its later sibling: 1 grandparent, 2 parent, 3 uncle, 4 file."""
    write("grandparent.yaml", "a: 1\nb: 1\nc: 1\nd: 1")
    write("parent.yaml", "defaults: [grandparent.yaml]\nb: 2\nc: 2\nd: 2")
    write("uncle.yaml", "c: 3\nd: 3")
    path = write("file.yaml", "defaults: [parent.yaml, uncle.yaml]\nd: 4")
    assert compose(path) == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_paths_are_relative_to_the_file_that_names_them(write, tmp_path, monkeypatch):
    """Wherever the command is run."""
    write("shared/base.yaml", "defaults: [deeper/base.yaml]\nb: 2")
    write("shared/deeper/base.yaml", "a: 1\nb: 1")
    path = write("configs/a.yaml", "defaults: [../shared/base.yaml]\nc: 3")
    for folder in (tmp_path, tmp_path / "shared"):
        monkeypatch.chdir(folder)
        assert compose(path) == {"a": 1, "b": 2, "c": 3}
    monkeypatch.chdir(tmp_path / "configs")
    assert compose(Path("a.yaml")) == {"a": 1, "b": 2, "c": 3}


def test_a_file_may_be_reached_twice_but_not_from_itself(write):
    """A diamond is no cycle."""
    write("base.yaml", "a: 1")
    write("left.yaml", "defaults: [base.yaml]\nb: 2")
    write("right.yaml", "defaults: [base.yaml]\nc: 3")
    assert compose(write("file.yaml", "defaults: [left.yaml, right.yaml]")) == {"a": 1, "b": 2, "c": 3}


def test_empty_files_add_nothing(write):
    write("empty.yaml", "# nothing yet\n")
    assert compose(write("a.yaml", "defaults: [empty.yaml]\na: 1")) == {"a": 1}


def test_interpolations_see_the_merged_config(write):
    write("base.yaml", "batch: 4\nwindow: ${batch}")
    assert compose(write("a.yaml", "defaults: [base.yaml]\nbatch: 8")) == {"batch": 8, "window": 8}


def test_cycles_are_refused(write):
    write("a.yaml", "defaults: [b.yaml]")
    write("b.yaml", "defaults: [c.yaml]")
    path = write("c.yaml", "defaults: [a.yaml]")
    with pytest.raises(UserError, match=r"c\.yaml includes itself"):
        compose(path)
    with pytest.raises(UserError, match=r"self\.yaml includes itself"):
        compose(write("self.yaml", "defaults: [self.yaml]"))


def test_missing_files_are_named_with_who_wants_them(write, tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml does not exist$"):
        compose(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"none\.yaml does not exist \(wanted by .*/a\.yaml\)"):
        compose(write("a.yaml", "defaults: [none.yaml]"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: [1, 2", "is not valid YAML"),
        ("a: 1\n b: 2", "is not valid YAML"),
        ("- a\n- b", "must be a mapping"),
        ("just words", "must be a mapping"),
        ("defaults: base.yaml", "'defaults' must be a list of paths"),
        ("defaults: {base: yaml}", "'defaults' must be a list of paths"),
        ("defaults: [3]", "'defaults' must be a list of paths"),
        ("defaults:", "'defaults' must be a list of paths"),
        ("defaults: [[base.yaml]]", "'defaults' must be a list of paths"),
        ("a: ${nowhere}", "'nowhere' not found"),
        ("a: ${", "cannot be resolved"),
        ("a: ${b}\nb: ${a}", "Recursive interpolation"),
    ],
)
def test_malformed_files_are_named(write, text, complaint):
    """Also where another file brings them in."""
    malformed = write("malformed.yaml", text)
    for path in (malformed, write("a.yaml", "defaults: [malformed.yaml]")):
        with pytest.raises(UserError, match=complaint) as error:
            compose(path)
        # An interpolation belongs to the merged config, which is named by the file that was asked for.
        assert (path.name if "$" in text else malformed.name) in str(error.value)


def test_file_that_is_not_utf8(tmp_path):
    (tmp_path / "a.yaml").write_bytes("name: Bär".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.yaml is not valid YAML"):
        compose(tmp_path / "a.yaml")


def test_config_arguments_are_replaced_by_what_they_compose_to(write):
    write("base.yaml", "a: 1\nb: 1")
    path = str(write("a.yaml", "defaults: [base.yaml]\nb: 2"))
    for arguments in (["--config", path], [f"--config={path}"], ["-c", path], [f"-c={path}"]):
        (expanded,) = expand_config_arguments(arguments)
        option, _, text = expanded.partition("=")
        assert option == "--config"
        assert yaml.safe_load(text) == {"a": 1, "b": 2}


def test_configs_are_merged_and_the_other_arguments_come_after_them_as_they_are(write):
    first, second = write("first.yaml", "a: 1\nb: {c: 1, d: 1}"), write("second.yaml", "a: 2\nb: {d: 2}")
    arguments = [
        "fit",
        "--config",
        str(first),
        "--x=1",
        "--config_like",
        "y",
        f"--config={second}",
        "--a=3",
        "--",
        "z==",
    ]
    expanded = expand_config_arguments(arguments)
    assert expanded == [
        "--config=a: 2\nb:\n  c: 1\n  d: 2\n",
        "fit",
        "--x=1",
        "--config_like",
        "y",
        "--a=3",
        "--",
        "z==",
    ]
    assert expand_config_arguments([]) == []


def test_config_without_a_value():
    for option in ("--config", "-c"):
        with pytest.raises(UserError, match="--config wants the path of a YAML file"):
            expand_config_arguments(["--x=1", option])


@pytest.mark.parametrize("arguments", [["--config="], ["--config", ""]])
def test_config_with_an_empty_value(arguments):
    with pytest.raises(UserError, match="--config wants the path of a YAML file"):
        expand_config_arguments(arguments)


def test_config_of_a_missing_file():
    with pytest.raises(UserError, match=r"/nowhere/none\.yaml does not exist"):
        expand_config_arguments(["--config", "/nowhere/none.yaml"])


def test_the_shipped_defaults_are_merged():
    """One real chain, read with nothing but a YAML parser."""
    own = yaml.safe_load((REPOSITORY / "configs/cold_start/tiny_sd3.yaml").read_text())
    composed = compose(REPOSITORY / "configs/cold_start/tiny_sd3.yaml")
    bases = [compose(REPOSITORY / "configs/cold_start" / name) for name in own["defaults"]]
    assert len(bases) == 2
    assert set(composed) == set(own) - {"defaults"} | set(bases[0]) | set(bases[1])
    merged = composed["model"]["init_args"]
    assert merged["batch_size"] == own["model"]["init_args"]["batch_size"]
    first, second = (base["model"]["init_args"]["sampler"] for base in bases)
    assert merged["sampler"] == first | second and first.keys() != second.keys()
    assert merged["backbone"] == bases[1]["model"]["init_args"]["backbone"]


# `readable_errors`, inside which all of this is raised.


@pytest.fixture
def no_debug(monkeypatch):
    monkeypatch.delenv(DEBUG_VARIABLE, raising=False)


@pytest.fixture
def debug(monkeypatch):
    monkeypatch.setenv(DEBUG_VARIABLE, "1")


def told(capsys, error: Exception, cause: Exception | None = None) -> str:
    """All of stderr."""
    with pytest.raises(SystemExit) as exit_, readable_errors():
        raise error from cause
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_a_user_error_is_one_line_and_status_2(capsys, no_debug):
    stderr = told(capsys, UserError("the key\n   a.b\tis wrong"))
    assert stderr == "error: the key a.b is wrong (set RTDMD_DEBUG=1 for the traceback)\n"


def test_so_is_what_the_parser_refuses(capsys, no_debug):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--number", type=int)
    with pytest.raises(SystemExit) as exit_, readable_errors():
        parser.parse_args(["--number=many"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "number" in line


def test_a_user_error_inside_another_error_is_told(capsys, no_debug):
    """jsonargparse wraps what a constructor raises."""
    assert told(capsys, RuntimeError("outer"), UserError("inner")).startswith("error: inner (")
    chain = ValueError("middle")
    chain.__cause__ = UserError("innermost")
    assert told(capsys, RuntimeError("outer"), chain).startswith("error: innermost (")


@pytest.mark.parametrize("error", [UserError("wrong"), ArgumentError(None, "wrong")])
def test_debugging_raises_it_again(capsys, debug, error):
    with pytest.raises(type(error)) as raised, readable_errors():
        raise error
    assert raised.value is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [KeyError("a"), ValueError("b"), RuntimeError("c"), KeyboardInterrupt(), SystemExit(3)]
)
def test_bugs_interrupts_and_exits_pass_through(capsys, no_debug, error):
    with pytest.raises(type(error)) as raised, readable_errors():
        raise error
    assert raised.value is error
    assert capsys.readouterr().err == ""


def test_nothing_happens_where_nothing_is_wrong(capsys, no_debug):
    with readable_errors():
        print("done")
    assert capsys.readouterr() == ("done\n", "")


def test_a_process_ends_without_a_traceback(tmp_path):
    """As a shell sees it, first without and then with the variable."""
    script = tmp_path / "script.py"
    script.write_text(
        "from rtdmd_lightning.utils.errors import UserError, readable_errors\n"
        "with readable_errors():\n"
        "    raise UserError('no such thing')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != DEBUG_VARIABLE}
    environment |= {"PYTHONPATH": str(REPOSITORY)}
    quiet = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert quiet.returncode == 2 and quiet.stdout == ""
    assert quiet.stderr == "error: no such thing (set RTDMD_DEBUG=1 for the traceback)\n"
    loud = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment | {DEBUG_VARIABLE: "1"}
    )
    assert loud.returncode == 1 and "Traceback" in loud.stderr and "UserError: no such thing" in loud.stderr


MODULES = "for_module: {A: {rate: 2, nested: {b: 3}}, B: {other: 1}}\nmodel: {init_args: {shared: 5}}"


def expanded(arguments):
    (argument,) = expand_config_arguments(arguments)
    return yaml.safe_load(argument.removeprefix("--config="))


def test_options_for_a_module_are_merged_where_that_module_is_trained(write):
    base = write("base.yaml", "model: {class_path: A, init_args: {rate: 1, nested: {a: 1, b: 2}}}")
    merged = expanded(["--config", str(base), "--config", str(write("paper.yaml", MODULES))])
    assert merged == {"model": {"class_path": "A", "init_args": {"shared": 5, "rate": 2, "nested": {"a": 1, "b": 3}}}}


def test_options_for_other_modules_are_left_out(write):
    base = write("base.yaml", "model: {class_path: C}")
    merged = expanded(["--config", str(base), "--config", str(write("paper.yaml", MODULES))])
    assert merged == {"model": {"class_path": "C", "init_args": {"shared": 5}}}


@pytest.mark.parametrize("text", [MODULES, "for_module: 3\nmodel: {class_path: A}"])
def test_options_for_a_module_without_one_are_refused(write, text):
    with pytest.raises(UserError, match="for_module"):
        expand_config_arguments(["--config", str(write("paper.yaml", text))])


# Files that would take a day, or the memory.


def test_a_key_that_stands_twice_is_told_with_both_lines(write):
    path = write("twice.yaml", "a:\n  rate: 1\n  other: 2\n  rate: 3\n")
    with pytest.raises(UserError, match=r"twice\.yaml: the key 'rate' stands twice, on the lines 2 and 4"):
        compose(path)
    assert compose(write("once.yaml", "a: {rate: 1}\nb: {rate: 1, 'c': 2, 'd': 2}")) == {
        "a": {"rate": 1},
        "b": {"rate": 1, "c": 2, "d": 2},
    }


@pytest.mark.parametrize("text", ["a: &x [1, *x]", "a: &x {b: *x}", "a: &x {b: [{c: *x}]}"])
def test_an_alias_that_holds_itself_is_told(write, text):
    with pytest.raises(UserError, match=r"itself\.yaml line 1: the alias"):
        compose(write("itself.yaml", text))


def test_aliases_are_what_they_stand_for_up_to_a_limit(write):
    assert compose(write("a.yaml", "a: &x {b: 1}\nc: *x\nd: [*x, *x]")) == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": [{"b": 1}, {"b": 1}],
    }
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    with pytest.raises(UserError, match=r"bomb\.yaml line \d+: with its aliases"):
        compose(write("bomb.yaml", "\n".join(lines)))


@pytest.mark.parametrize(("times", "fits"), [(900, True), (1100, False)])
def test_the_limit_counts_every_alias_as_what_it_stands_for(write, times, fits):
    """A hundred values, so many times: 100,000 is the limit."""
    hundred = ", ".join(["0"] * 100)
    path = write("a.yaml", f"a: &a [{hundred}]\nb: [{', '.join(['*a'] * times)}]")
    if fits:
        assert len(read_yaml(path)["b"]) == times
    else:
        with pytest.raises(UserError, match=r"a\.yaml line 1: .* over 100000 values"):
            read_yaml(path)


def test_defaults_that_fan_out_end_with_a_limit(write):
    """Nine levels of nine defaults each would be opened 400 million times."""
    for level in range(9):
        write(f"{level}.yaml", f"defaults: [{', '.join([f'{level + 1}.yaml'] * 9)}]")
    write("9.yaml", "a: 1")
    with pytest.raises(UserError, match="its defaults lead to over"):
        compose(write("a.yaml", "defaults: [0.yaml]"))


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 50_000, "!!bool a: 1", "a: !!timestamp b", "a: 2020-99-99", "a: !!python/object:os.system b", "\t"],
)
def test_what_no_config_holds_is_told(write, text):
    with pytest.raises(UserError, match=r"odd\.yaml is not valid YAML"):
        compose(write("odd.yaml", text))


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(UserError, match=r"is a folder; name a YAML file"):
        expand_config_arguments(["--config", str(tmp_path)])


def test_an_option_is_known_by_its_whole_name(capsys, no_debug):
    def command(batch_size: int = 1) -> int:
        return batch_size

    assert run_command(command, ["--batch_size=3"]) == 3
    with pytest.raises(ArgumentError, match="--batch"):
        run_command(command, ["--batch=3"])
