"""A function `grade(sample, item)` in Python, run in a locked process of its own."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from luthier.errors import EvaluationError
from luthier.evaluation.graders._jail import run_jailed
from luthier.evaluation.graders._template import as_text
from luthier.evaluation.graders.base import Errors, Grader, Host, NoScore, Sample, Score

MAX_BYTES = 256 * 1024


class Python(Grader):
    """The number that the function returns.

    The source can compute, and nothing else: no files, no network, no other processes, and of modules those of Python's
    own library that need none of these. Where the system cannot lock it in, it does not run.
    """

    source: str = Field(min_length=1, max_length=MAX_BYTES)
    """Defines `grade(sample, item) -> float`; the sample has `output_text`, `output_json` and `output_tools`."""
    image_tag: str | None = Field(None, max_length=64)
    """OpenAI's name of an image with more packages; there is none here, so a grader that names one is refused."""

    @field_validator("source")
    @classmethod
    def _is_text(cls, source: str) -> str:
        size = len(source.encode("utf-8", "surrogatepass"))
        if size > MAX_BYTES:
            raise ValueError(f"the source has {size} bytes; expected at most {MAX_BYTES}")
        return source

    def require(self, host: Host) -> None:
        """Raise an EvaluationError if the source is no Python with a `grade`, wants an image, or has no jail."""
        if self.image_tag is not None:
            raise EvaluationError(
                f"grader {self.name!r}: image_tag names an image with more packages; there is none here: leave it out"
            )
        outcome = run_jailed(self.source, {}, {}, host.limits, only_check=True)
        if outcome.ending == "no_jail":
            raise EvaluationError(
                f"grader {self.name!r} is a Python grader, and those run only in a jail, which cannot be had here: "
                f"{outcome.details}. Use another type of grader, or a Linux with seccomp."
            )
        if outcome.ending != "reward":
            raise EvaluationError(f"grader {self.name!r}: {outcome.details}")

    def score(self, sample: Sample, item: Mapping[str, Any], host: Host) -> Score:
        """What `grade` returns."""
        if len(as_text(item)) + len(as_text(sample.values())) > host.limits.text_chars:
            problem = f"the item and the sample have more than {host.limits.text_chars} characters"
            raise NoScore(problem, Errors(truncated_observation_error=True))
        outcome = run_jailed(self.source, sample.values(), dict(item), host.limits)
        if outcome.ending == "reward":
            return Score(outcome.reward)
        if outcome.ending == "no_jail":
            errors = Errors(python_grader_server_error=True, python_grader_server_error_type="no_jail")
        elif outcome.ending == "no_number":
            errors = Errors(
                python_grader_runtime_error=True,
                python_grader_runtime_error_details=outcome.details,
                unresponsive_reward_error=True,
            )
        else:
            errors = Errors(python_grader_runtime_error=True, python_grader_runtime_error_details=outcome.details)
        raise NoScore(outcome.details, errors)
