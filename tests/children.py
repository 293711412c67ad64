"""Processes of their own that need not import everything first: forked from one that did nothing but import.

Python takes longer to import torch and transformers than most tests take. What is about another process (two that write
at once, one that is killed) starts it here; what is about a fresh interpreter (what an import loads, what another
program makes of a file) starts `sys.executable`.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(["luthier.complete", "transformers.modeling_utils"])

LUTHIER = "import sys; from luthier.cli.main import main; sys.exit(main(sys.argv[1:]))"


class Child:
    """`python -c program arguments`, with the environment of this process as it is now and more."""

    def __init__(self, program: str, *arguments: str | Path, more: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="child-")
        self._told = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        environment = {**os.environ, **(more or {})}
        given = program, [str(one) for one in arguments], environment, os.getcwd(), self._told
        self._process = _FORKING.Process(target=_run, args=given)
        self._process.start()

    def send(self, number: signal.Signals) -> None:
        """A signal, as `kill` does."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def ended(self, seconds: float) -> tuple[int, str, str]:
        """Its exit code (-9: killed), stdout and stderr, once it has ended.

        Raises:
            AssertionError: it has not after so many seconds.
        """
        self._process.join(seconds)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        output, error = (path.read_text(encoding="utf-8", errors="replace") for path in self._told)
        self._folder.cleanup()
        assert code is not None, f"not ended after {seconds:.0f} s: {error}"
        return code, output, error


def luthier(*arguments: str | Path) -> Child:
    """The command line, in a process of its own."""
    return Child(LUTHIER, *arguments)


def _run(program: str, arguments: list[str], environment: Mapping[str, str], folder: str, told: list[Path]) -> None:
    """As the interpreter would run it, in the child; what it raises is printed, and is exit code 1."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, number in zip(told, (1, 2), strict=True):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf-8", closefd=False) for number in (1, 2))
    sys.argv = ["-c", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background was told to ignore it
    exec(compile(program, "<child>", "exec"), {"__name__": "__main__"})  # noqa: S102 - a test's own program
