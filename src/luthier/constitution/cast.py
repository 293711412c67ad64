"""Who takes part in a constitution's run, each opened when it is first needed, and let go before a training."""

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from luthier import assemble, registry
from luthier.config import Tree, part
from luthier.constitution.voices import Elsewhere, Here, Voice
from luthier.errors import EvaluationError
from luthier.evaluation.systems.base import Desk, System
from luthier.examples import Message
from luthier.models import heads
from luthier.models.catalog import resolve
from luthier.models.load import choose_device
from luthier.progress import Progress
from luthier.recipe import ConstitutionSettings, Recipe, dump_part
from luthier.rewarding import Judges
from luthier.run_folder import RunFolder

BEFORE, SUPERVISED, PREFERRED = "before", "supervised", "preferred"
"""The model as it was, after the training on revised replies, and after that on preferences: folders of runs, too."""


class Cast:
    """Models by what they do. Of those on this machine one at a time is held, but the critic beside the writer."""

    def __init__(self, recipe: Recipe, settings: ConstitutionSettings, folder: RunFolder, progress: Progress) -> None:
        self._recipe, self._settings, self._folder, self._progress = recipe, settings, folder, progress
        self._desk = Desk(folder / "responses", say=lambda text: progress.say(f"    {text}"))
        self._writer: tuple[str, Here] | None = None
        self._asked: dict[str, Voice] = {}
        self._judges: Judges | None = None
        self._reward_files: dict[str, Tree] = {}

    def writer(self, name: str) -> Here:
        """The model that is trained, as it stands after the training of this name (`before`: none)."""
        if self._writer is None or self._writer[0] != name:
            self._writer = None
            self._collect()
            self._progress.say(f"    opening the model, {name}")
            self._writer = name, self._open_base() if name == BEFORE else self._open_trained(name)
        return self._writer[1]

    def unfit(self, name: str, messages: Sequence[Message], reply: str) -> str:
        """Why no row of a training can end with a reply, by the template of `writer(name)`; empty: one can."""
        return self.writer(name).unfit(messages, reply, self._recipe.training.max_tokens)

    @property
    def precision(self) -> str:
        """The number format that the model is held in, so that `auto` means one thing in all of the run."""
        held = self._folder.read("manifest.json").get("held")
        if held is None:
            self.writer(BEFORE)
            held = self._folder.read("manifest.json")["held"]
        return str(held["precision"])

    @property
    def critic_name(self) -> str:
        """What it is called; nothing is opened."""
        critic = self._settings.critic
        if critic is None:
            return f"{_short(self._recipe.model.name)} itself, before training"
        return name_of(part(critic, System, "constitution.critic"))  # type: ignore[type-abstract]

    def critic(self) -> Voice:
        """Who criticizes, revises and prefers; without one of its own, the model before training."""
        if self._settings.critic is None:
            return self.writer(BEFORE)
        return self._other("critic", self._settings.critic)

    def judge(self) -> Voice | None:
        """Who judges held-out answers; None: nobody does."""
        return None if self._settings.judge is None else self._other("judge", self._settings.judge)

    def reward_models(self) -> Judges:
        """What reward models say."""
        if self._judges is None:
            self._judges = Judges(str(choose_device(self._recipe.model.device)))
        return self._judges

    def reward_files(self, run: str) -> Tree:
        """The sha256 of each file of a reward model, computed once.

        Raises:
            ModelError: the run has no trained model, or a file of it was changed.
            EvaluationError: what it trained judges nothing.
        """
        if run in self._reward_files:
            return self._reward_files[run]
        files = dict(assemble.artifact_record(Path(run) / "adapter")["files"])
        if heads.FILE not in files:
            raise EvaluationError(
                f"constitution.reward_models: {run} trained no head that judges; name a run with objective.type = "
                "'reward'"
            )
        self._reward_files[run] = files
        return files

    def judge_decides(self) -> Tree:
        """What the judge's answers follow from."""
        judge = self._settings.judge
        return {} if judge is None else decides(part(judge, System, "constitution.judge"))  # type: ignore[type-abstract]

    def release(self) -> None:
        """Let all of them go."""
        self._writer, self._judges = None, None
        self._asked.clear()
        self._collect()

    @staticmethod
    def _collect() -> None:
        gc.collect()  # models refer to themselves, so counting references does not free them
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _open_base(self) -> Here:
        loaded = assemble.open_for_run(self._recipe, self._folder)
        return Here(_short(self._recipe.model.name), loaded, assemble.template_for(self._recipe, loaded))

    def _open_trained(self, name: str) -> Here:
        trained = assemble.open_trained(self._folder / name, str(choose_device(self._recipe.model.device)))
        return Here(name, trained.loaded, trained.template)

    def _other(self, key: str, settings: object) -> Voice:
        if key not in self._asked:
            system = part(settings, System, f"constitution.{key}")  # type: ignore[type-abstract, arg-type]
            name = name_of(system)
            self._progress.say(f"    opening {name}")
            here = system.open_here(str(choose_device(self._recipe.model.device)))
            self._asked[key] = (
                Elsewhere(name, system, self._desk, self._settings.critic_logprobs)
                if here is None
                else Here(name, *here)
            )
        return self._asked[key]


def name_of(system: System) -> str:
    """What a model that is asked is called in the report."""
    return _short(str(dump_part(system).get("model")))


def decides(system: System) -> Tree:
    """What its answers follow from.

    Raises:
        ModelError: a model on this machine cannot be had.
    """
    values = system.deciding()
    if registry.name_of(system) == "local_model":
        values["files"] = resolve(str(values["model"])).fingerprint
    return values


def _short(name: str) -> str:
    """A folder by its own name: where it lies is nobody's business who is given the report."""
    return Path(name).name if Path(name).exists() else name
