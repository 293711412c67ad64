"""Who teaches: another model, what a run trained, or the student itself behind a longer prompt."""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luthier import assemble
from luthier.data.templates import Template, build_template
from luthier.errors import RecipeError
from luthier.evaluation.long_prompt import LongPrompt, read_long_prompt
from luthier.examples import Message
from luthier.files import sha256_of
from luthier.models.catalog import resolve
from luthier.models.load import LoadedModel, choose_dtype, load
from luthier.models.scorer import Scorer, require_forest
from luthier.objectives.base import Scorer as AnyScorer
from luthier.progress import Progress
from luthier.recipe import Recipe, TeacherSettings


@dataclass(frozen=True)
class Voice:
    """A teacher in memory."""

    loaded: LoadedModel
    template: Template
    """Without a limit of tokens."""
    scorer: AnyScorer


@dataclass(frozen=True)
class Planned:
    """A teacher that is known and not opened."""

    settings: TeacherSettings
    prompt: LongPrompt | None
    identity: Mapping[str, Any]
    """What it says follows from, beside the rows."""

    @property
    def decides(self) -> list[Any]:
        """For a digest."""
        prompt = None if self.prompt is None else self.prompt.fingerprint
        return [dict(self.identity), prompt]

    @property
    def is_own(self) -> bool:
        """Whether it is the model that is trained, as it was before."""
        return self.settings.is_own

    def before(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """What it reads where its student reads these messages."""
        return messages if self.prompt is None else self.prompt.before(messages)

    @property
    def name(self) -> str:
        """As a person knows it."""
        found = self.settings.model or self.settings.run
        return "the model itself" if found is None else found


def planned(recipe: Recipe, loaded: LoadedModel, start: Mapping[str, str] | None = None) -> Planned | None:
    """The teacher of a recipe; None: its objective asks none.

    Args:
        recipe: of the run.
        loaded: its base.
        start: sha256 of the files that the adapter starts at, which a model that teaches itself follows from.

    Raises:
        RecipeError: other settings do not go with it.
        DataError: its prompt cannot be read.
        ModelError: there is no such model, or the run has none.
    """
    settings = recipe.teacher
    if assemble.objective_of(recipe).lesson() is None or settings is None:
        return None
    if settings.has_prompt and recipe.data.loss_on == "all":
        raise RecipeError(
            "data.loss_on = 'all' trains on prompts, too, and the teacher reads others (teacher.prompt); set it to "
            "'assistant'"
        )
    adapter = assemble.adapter_of(recipe)
    if added := adapter.added_tokens:
        raise RecipeError(f"adapter.new_tokens: no teacher knows {added[0]!r}; leave them out")
    if any(system.trained_on == "passages" for system in assemble.systems_of(recipe).values()):
        raise RecipeError(
            "a second training, on rows with passages, has no teacher; leave the system fine_tuned_rag out"
        )
    writes = settings.replies == "teacher"
    if writes and recipe.rollout is not None:
        raise RecipeError("teacher.replies = 'teacher' changes nothing where the model itself writes ([rollout])")
    if writes and settings.is_own and (run := adapter.start_from) is not None:
        raise RecipeError(
            f"teacher.replies = 'teacher' and adapter.start_from: write run = '{run}' in [teacher], so that what that "
            "run trained writes the replies"
        )
    return named(recipe, settings, loaded.device, loaded, start)


def named(
    recipe: Recipe,
    settings: TeacherSettings,
    device: torch.device,
    own: LoadedModel | None,
    start: Mapping[str, str] | None = None,
) -> Planned:
    """The teacher that a recipe names, on that device; `own`: the recipe's model, where it teaches itself.

    Raises:
        DataError, ModelError: as `planned`.
    """
    prompt = read_long_prompt(settings)
    if not settings.is_own:
        return Planned(settings, prompt, _identity(settings, device))
    if own is None:
        raise ValueError("a model that teaches itself must be there")
    held = [str(own.dtype), recipe.model.quantize]
    return Planned(settings, prompt, {"model": own.files.fingerprint, "held": held, "start": dict(start or {})})


def _identity(settings: TeacherSettings, device: torch.device) -> dict[str, Any]:
    if settings.run is not None:
        record = assemble.read_artifact(Path(settings.run)).record
        return {"run": record["files"], "base": record["model"]["fingerprint"]}
    if settings.model is not None:
        dtype = choose_dtype(settings.precision, device)
        template = Path(settings.template)
        return {
            "model": resolve(settings.model).fingerprint,
            "held": [str(dtype), settings.quantize],
            "template": sha256_of(template) if template.is_file() else settings.template,
        }
    raise ValueError("a model that teaches itself is known by its student")


def open_voice(plan: Planned, recipe: Recipe, device: torch.device, progress: Progress) -> Voice:
    """A teacher that is another model than the student.

    Raises:
        ModelError: it cannot be had or used.
    """
    settings = plan.settings
    with progress.stage("teacher", f"loading the teacher, {plan.name}"):
        if settings.run is not None:
            trained = assemble.open_trained(Path(settings.run), str(device))
            loaded, source = trained.loaded, str(trained.folder / assemble.TEMPLATE_FILE)
        elif settings.model is not None:
            loaded = load(resolve(settings.model), settings.precision, str(device), quantize=settings.quantize)
            require_forest(loaded.model)
            source = settings.template
        else:
            raise ValueError("a teacher that is its student is not opened")
    loaded.model.requires_grad_(False)
    return Voice(loaded, build_template(loaded, source, loss_on=recipe.data.loss_on), Scorer(loaded.model))


def free(device: torch.device) -> None:
    """Give back what a teacher held that nobody holds any more: models refer to themselves, so counting references does
    not free them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
