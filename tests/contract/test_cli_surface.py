"""The command line is frozen: a new verb or option, or a changed default, shows in a diff of `cli_surface.txt`.

Settings belong in the recipe; an option is for what differs from one call to the next. After a change that is meant,
`make reference` writes the file again.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import __version__, registry
from luthier.cli.main import COMMANDS, main

SURFACE = Path(__file__).with_name("cli_surface.txt")
VERBS = registry.names(COMMANDS)
MAX_OPTIONS = 16
"""Settings belong in the recipe. `serve` has the most: where it listens, who may use it and what it opens."""


def parser_of(verb: str) -> argparse.ArgumentParser:
    """The verb's parser, as the dispatcher makes it."""
    parser = argparse.ArgumentParser(prog=f"luthier {verb}", allow_abbrev=False)
    registry.load(COMMANDS, verb).add_arguments(parser)
    return parser


def actions(verb: str) -> list[argparse.Action]:
    """The verb's arguments, `--help` left out."""
    # argparse has no public list of its arguments; `_actions` has been stable since Python 2.7
    return [action for action in parser_of(verb)._actions if action.dest != "help"]


def describe(action: argparse.Action) -> str:
    """One line: spelling, what it takes, default."""
    spelled = " ".join(action.option_strings) or f"<{action.dest}>"
    parts = [spelled]
    if action.nargs is not None:
        parts.append(f"takes={action.nargs}")
    if action.choices is not None:
        parts.append("one of " + "|".join(str(choice) for choice in action.choices))
    if action.required:
        parts.append("required")
    if action.default not in (None, [], argparse.SUPPRESS):
        parts.append(f"default={action.default}")
    return "  " + " ".join(parts)


def surface() -> str:
    """Every verb with its arguments."""
    return "\n".join("\n".join([f"luthier {verb}", *map(describe, actions(verb))]) for verb in VERBS) + "\n"


def test_the_command_line_is_as_written_down() -> None:
    assert SURFACE.read_text(encoding="utf-8") == surface(), (
        "the command line changed; if it was meant: `make reference`"
    )


def test_the_overview_lists_every_verb_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for verb in VERBS:
        assert f"  {verb} " in printed and registry.summary(COMMANDS, verb) in printed
    assert all(len(line) <= 130 for line in printed.splitlines()), "a summary is too long for a terminal"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([verb, "--help"])
    assert leaving.value.code == 0
    assert registry.summary(COMMANDS, verb) in capsys.readouterr().out
    assert all(action.help for action in actions(verb)), "every argument says what it is for"
    assert len(actions(verb)) <= MAX_OPTIONS, "settings belong in the recipe"


@pytest.mark.parametrize("verb", VERBS)
def test_an_unknown_option_is_refused(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([verb, "--no-such-option"])
    assert leaving.value.code == 2
    assert f"usage: luthier {verb}" in capsys.readouterr().err


def test_an_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repot"]) == 2
    assert "unknown command 'repot'; did you mean 'report'" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"luthier {__version__}\n"


def test_the_installed_command_is_the_same_program() -> None:
    command = Path(sys.executable).with_name("luthier")
    if not command.exists():
        pytest.skip("the `luthier` command is not installed beside this Python")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"luthier {__version__}\n"


@pytest.mark.slow
def test_a_closed_pipe_is_not_an_error() -> None:
    program = "import sys; from luthier.cli.main import main; sys.exit(main(['recipe', '--reference']))"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{program}" | head -1'], capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr


def test_a_file_that_no_verb_foresaw_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr("luthier.cli.commands.models.run", fail)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "error: /some/file: Permission denied\n"


def test_an_os_error_without_a_file_is_no_mistake_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("luthier.cli.commands.models.run", fail)
    with pytest.raises(OSError, match="Input/output"):
        main(["models"])


if __name__ == "__main__":
    print(surface(), end="")
