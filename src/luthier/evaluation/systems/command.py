"""An external program in the same table: a rule-based parser, a classic model, a script that calls another service.

It gets one JSON object a line on its standard input, `{"id", "messages", "tools"}`, writes one a line to its standard
output, `{"id", "output"}`, and finds the training rows in the file that the environment variable `LUTHIER_TRAIN`
names. It runs in the recipe's folder, is given as a list of arguments, and never goes through a shell; `python` is the
interpreter that runs Luthier.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.data.replies import parse_reply_text
from luthier.errors import EvaluationError
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems.base import (
    Answer,
    Answers,
    Context,
    System,
    message_text,
    messages_as_values,
    require_questions,
)
from luthier.examples import Example

STDERR_LINES = 15


class Command(System):
    """An external program."""

    is_model: ClassVar[bool] = False
    rung: ClassVar[Rung] = "external"

    command: tuple[str, ...] = Field(min_length=1)
    """The program and its arguments; a program called `python` is the Python that Luthier itself runs in."""
    timeout_seconds: float = Field(600.0, gt=0)
    """It is ended, and the evaluation fails, if it takes longer."""

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The program's answers.

        Raises:
            EvaluationError: it cannot be started, fails, takes too long, or does not answer every row once; a row is no
                question.
        """
        questions = require_questions(rows, self._name)
        asked = [
            {"id": row.id, "messages": messages_as_values(row.prompt), "tools": [dict(tool) for tool in row.tools]}
            for row in questions
        ]
        context.on_progress(self._name, 0, len(rows))
        out = self._run("".join(json.dumps(question, ensure_ascii=False) + "\n" for question in asked), context)
        outputs = self._parse(out, {row.id for row in rows})
        context.on_progress(self._name, len(rows), len(rows))
        answers = []
        for row in rows:
            reply = parse_reply_text(outputs[row.id])
            output = message_text(reply) if reply.tool_calls else outputs[row.id]
            answers.append(Answer(row.id, row.prompt, output, reply))
        return Answers(answers, details={"command": list(self.command)})

    @property
    def _name(self) -> str:
        return " ".join(self.command)

    def _run(self, stdin: str, context: Context) -> str:
        # "python" must be the interpreter that runs Luthier, with its packages, even where no environment is active
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        environment = dict(os.environ, PYTHONIOENCODING="utf-8", PATH=path)
        if context.train_file is not None:
            environment["LUTHIER_TRAIN"] = str(context.train_file.resolve())
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                cwd=context.recipe_folder,
                env=environment,
                start_new_session=True,  # what it starts is ended with it
            )
        except OSError as error:
            raise self._error(f"cannot be started in {context.recipe_folder}: {error.strerror or error}", "") from None
        with process:
            try:
                stdout, stderr = process.communicate(stdin, self.timeout_seconds)
            except BaseException as error:
                _end(process)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                what = f"took longer than {self.timeout_seconds:g} s and was ended"
                raise self._error(what, _text(error.stderr)) from None
        if process.returncode:
            raise self._error(f"ended with exit code {process.returncode}", stderr)
        return stdout

    def _parse(self, stdout: str, ids: set[str]) -> dict[str, str]:
        outputs: dict[str, str] = {}
        for number, line in enumerate(stdout.split("\n"), 1):
            if not line.strip():
                continue
            identifier, output = self._parse_line(line, number)
            if identifier not in ids or identifier in outputs:
                what = "is not the id of a row" if identifier not in ids else "was answered twice"
                raise self._error(f"line {number} of its output: {identifier!r} {what}", "")
            outputs[identifier] = output
        missing = sorted(ids - outputs.keys())
        if missing:
            listed = ", ".join(missing[:5])
            raise self._error(f"did not answer {len(missing)} of {len(ids)} rows, such as {listed}", "")
        return outputs

    def _parse_line(self, line: str, number: int) -> tuple[str, str]:
        try:
            values: Any = json.loads(line)
        except ValueError as error:
            raise self._error(f"line {number} of its output is not JSON ({error}): {line[:120]!r}", "") from None
        good = isinstance(values, dict) and isinstance(values.get("id"), str) and isinstance(values.get("output"), str)
        if not good:
            expected = 'expected {"id": "...", "output": "..."}, both texts'
            raise self._error(f"line {number} of its output: {expected}, found {line[:120]!r}", "")
        return values["id"], values["output"]

    def _error(self, what: str, stderr: str) -> EvaluationError:
        lines = stderr.strip().splitlines()[-STDERR_LINES:]
        said = "\nThe last lines of its error output:\n  " + "\n  ".join(lines) if lines else ""
        return EvaluationError(
            f"the command {self._name!r} {what}. It must answer one JSON object {{id, output}} a line for each row on "
            f"its standard input.{said}"
        )


def _end(process: subprocess.Popen[str]) -> None:
    """End a program and what it started; where processes have no groups, the program alone."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _text(stderr: bytes | str | None) -> str:
    return stderr.decode("utf-8", "replace") if isinstance(stderr, bytes) else stderr or ""
