"""Trained reward models at work: runs are opened once, and judge replies for graders, trainings and programs.

    with_rewards = Judges()
    with_rewards(["runs/reward"], messages)      one number for each run

Runs of one base share its weights.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from luthier.assemble import Artifact, artifact_record, read_artifact
from luthier.config import canonical_hash
from luthier.evaluation.graders.base import Host, ModelReply
from luthier.evaluation.rewards import Judgement, RewardModel
from luthier.examples import Conversation, Message
from luthier.models.load import LoadedModel
from luthier.models.mixed import twin
from luthier.online import Hosted, models_asked, runs_asked
from luthier.recipe import Recipe


def open_reward_model(run: Path, device: str | None = None) -> RewardModel:
    """The reward model that a run trained.

    Raises:
        ModelError: the run has no trained model, or a file of it was changed.
        EvaluationError: what it trained judges no replies.
    """
    return Judges(device).model(str(run))


def host_of(recipe: Recipe, folder: Path, device: str) -> Hosted:
    """What graders of a recipe's rollouts may use.

    Args:
        recipe: with rollouts.
        folder: the run's, for answers that are paid for.
        device: of models on this machine.

    Raises:
        ModelError, EvaluationError: a run that grades replies has no trained model, or one that judges none; or a model
            cannot be asked from here.
    """
    found = _judges(recipe)
    if recipe.rollout is None or not recipe.rollout.models:
        return found
    models = models_asked(recipe, folder / "rollouts" / "responses", device)
    decides = {**found.decides, **models.identities}
    return Hosted(replace(found.host, ask_model=models), decides, models.at_once, models.notes)


def unasked(recipe: Recipe) -> Hosted:
    """The same where models are not asked: they say nothing, and no reply is worth anything to a grader that asks one.

    Raises:
        ModelError, EvaluationError: as `host_of`, of runs.
    """
    found = _judges(recipe)
    return replace(found, host=replace(found.host, ask_model=lambda *_: ModelReply("")))


def _judges(recipe: Recipe) -> Hosted:
    files, judge = judging_files(recipe), Judges()
    for run in files:  # now: later one that cannot judge is a grade of 0, and the memory it takes would not be counted
        judge.model(run)
    return Hosted(Host(judge=judge if files else None), files)


def judging_files(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Of each run that graders of rollouts ask, by its folder, the sha256 of its files.

    Raises:
        ModelError: one has no trained model, or a file of it was changed.
    """
    return {run: artifact_record(Path(run) / "adapter")["files"] for run in runs_asked(recipe)}


class Judges:
    """Reward models by their runs' folders, each opened when it is first asked."""

    def __init__(self, device: str | None = None) -> None:
        """`device`: as `model.device`; None: that of each run's recipe."""
        self._device = device
        self._models: dict[str, RewardModel] = {}
        self._bases: dict[str, LoadedModel] = {}
        self._one = Lock()

    def __call__(self, runs: Sequence[str], messages: Sequence[Message]) -> list[float]:
        """The reward of a chat's last message by each run; raises as `judge`. One thread at a time does."""
        with self._one:
            return self._rewards(runs, messages)

    def _rewards(self, runs: Sequence[str], messages: Sequence[Message]) -> list[float]:
        return [judged[0].reward for judged in self.judge(runs, [Conversation(tuple(messages), id="the answer")])]

    def judge(self, runs: Sequence[str], conversations: Sequence[Conversation]) -> list[list[Judgement]]:
        """For each run what it says of each conversation's last message.

        Raises:
            ModelError: a run has no trained model.
            EvaluationError: a run judges no replies, or a conversation cannot be judged.
            TemplateError: a template refuses a message.
        """
        return [self.model(run).judge(conversations) for run in runs]

    def model(self, run: str) -> RewardModel:
        """The reward model of a run.

        Raises:
            ModelError, EvaluationError: as `open_reward_model`.
        """
        if run not in self._models:
            artifact = read_artifact(Path(run))
            loaded = self._base(artifact)
            template = artifact.template(loaded)
            injected = artifact.put_in(loaded.model)
            loaded.model.eval()
            self._models[run] = RewardModel(loaded, template, injected.head)
        return self._models[run]

    def _base(self, artifact: Artifact) -> LoadedModel:
        """A model of its own structure that shares the base's tensors; a run that trained all of them has its own."""
        if artifact.is_whole:
            return artifact.open_base(self._device)
        held = artifact.record["model"], artifact.recipe.model.model_dump(), artifact.added_tokens
        key = canonical_hash([dict(held[0]), held[1], list(held[2])])
        if key not in self._bases:
            self._bases[key] = artifact.open_base(self._device)
        return replace(self._bases[key], model=twin(self._bases[key].model))
