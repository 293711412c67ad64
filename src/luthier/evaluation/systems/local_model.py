"""Another local model as a reference, mostly a larger one: what a prompt reaches where training is not needed.

It gets the same chance as the run's base: the prompts of `zero_shot` compete for it on validation rows, or with `shots`
those of `few_shot`. It is opened only when it must answer, and freed after it. Its tokens and seconds are its own, so
the report counts what its answers cost. Scores of wanted replies are taken, too; perplexity and token accuracy count
tokens of its own tokenizer, so they cannot be compared with those of another family, while bits per byte can.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from luthier.config import build, nested
from luthier.data.templates import Template, build_template
from luthier.errors import EvaluationError
from luthier.evaluation.graders.base import ModelReply, SamplingParams
from luthier.evaluation.rungs import Rung
from luthier.evaluation.systems._other_model import ModelChoice, opened
from luthier.evaluation.systems.base import GRADER_TOKENS, Answers, AskedByGraders, Context, System
from luthier.evaluation.systems.few_shot import FewShot
from luthier.evaluation.systems.zero_shot import ZeroShot
from luthier.examples import Example, Message
from luthier.models.catalog import resolve
from luthier.models.generate import generate
from luthier.models.load import LoadedModel, load
from luthier.models.scorer import require_forest
from luthier.recipe import ModelSettings


class LocalModel(System):
    """A model that was not trained here, asked as well as can be."""

    rung: ClassVar[Rung] = "other_model"

    model: str = Field(min_length=1)
    """A folder or .gguf file (relative to the recipe's folder), a hub id, or a name that `luthier models` lists."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """As `model.precision`."""
    quantize: str = "none"
    """As `model.quantize`: `none`, `nf4`, `int8`, or `gguf`."""
    template: str = "model"
    """As `model.template`: the model's own, a built-in one, or a path to a .jinja file."""
    instruction: str = ""
    """Always added to the system message, before any addition that competes."""
    shots: int = Field(0, ge=0)
    """Solved training rows before each question, asked as `few_shot` asks; 0: as `zero_shot` asks."""
    tune_rows: int = Field(20, ge=0)
    """Validation rows on which ways to ask compete; 0: none is tried."""
    answer_room: float = Field(2.0, ge=1)
    """Longest answer, in multiples of `evaluation.max_new_tokens`."""

    @field_validator("quantize")
    @classmethod
    def _require_known(cls, value: str) -> str:
        with nested():
            return build(ModelSettings, {"quantize": value}).quantize

    @property
    def _choice(self) -> ModelChoice:
        return ModelChoice(model=self.model, precision=self.precision, quantize=self.quantize, template=self.template)

    def identity(self, context: Context) -> str:
        """Changes when the model's files do; raises ModelError if there is no such model."""
        return self._choice.identity(context)

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        """The other model's answers; `details` says which it was, what it needed, and every way to ask that was tried.

        Raises:
            EvaluationError: it does not fit beside the run's model, or a row does not fit the task or its context.
            ModelError: it cannot be had or used.
        """
        common: dict[str, Any] = {
            "instruction": self.instruction,
            "tune_rows": self.tune_rows,
            "answer_room": self.answer_room,
        }
        asker: System = FewShot(shots=self.shots, **common) if self.shots else ZeroShot(**common)
        with opened(self._choice, context, "local_model") as other:
            given = asker.answer(rows, other.context)
            return Answers(given.answers, given.seconds, {**other.details, **given.details})

    def open_here(self, device: str) -> tuple[LoadedModel, Template]:
        """The model and its template; raises ModelError if it cannot be had or used."""
        loaded = load(resolve(self.model), self.precision, device, quantize=self.quantize)
        require_forest(loaded.model)
        return loaded, build_template(loaded, self.template)

    def for_graders(self, folder: Path, device: str) -> AskedByGraders:
        """The model, opened; raises ModelError if it cannot be had or used."""
        return _ForGraders(self, device)


class _ForGraders:
    """The model, asked by graders, one question at a time."""

    at_once = 1

    def __init__(self, settings: "LocalModel", device: str) -> None:
        self._loaded, self._template = settings.open_here(device)
        self.identity, self._name = self._loaded.files.fingerprint, settings.model
        self._one = threading.Lock()
        self.note = f"replies are graded by {settings.model} on this machine"

    def ask(self, messages: Sequence[Message], sampling: SamplingParams) -> ModelReply:
        if sampling.reasoning_effort is not None:
            raise EvaluationError(f"{self._name} is on this machine, and knows no reasoning_effort; remove it")
        prompt = self._template.prompt_ids(messages)
        with self._one:
            (found,) = generate(
                self._loaded,
                [prompt],
                max_new_tokens=sampling.max_completions_tokens or GRADER_TOKENS,
                stop_ids=self._template.stop_ids,
                stop_loops=True,
                temperature=sampling.temperature or 0.0,
                top_p=sampling.top_p or 1.0,
                seed=[(sampling.seed or 0) % 2**64],
            )
        return ModelReply(self._template.parse_reply(found.ids).content, found.prompt_tokens + found.completion_tokens)
