"""Constitutional AI from principles to a report (Bai et al. 2022, arXiv:2212.08073), resumable at every stage.

The model answers red-team prompts; a critic criticizes each reply by a principle and revises it; the model learns from
the revisions. Then it writes pairs of replies, the critic says by several principles how probable it is that one is the
better one, and the model, or a reward model, learns from that. Held-out prompts are answered before and after.

    decided.json             what decides all of it; the folder takes no others
    principles.toml          the constitution, as it was used
    data/ harmless/          red-team and harmless prompts, divided (`data_stage`)
    replies/ revised/        revise.py      supervised/  learn.py      drawn/ compared/ calibration/  compare.py
    preferred/               learn.py       answers/ judged/  measure.py
    constitution.json constitution.html critiques/ comparisons/    report.py, luthier/report/constitution.py

A file is there whole or not at all, and one that is there is read instead of made: the same command goes on where it
was stopped, by `kill -9` as well, and ends with the same records and the same weights.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from luthier import __version__
from luthier.assemble import KINDS as KINDS_OF_ROWS, objective_of
from luthier.config import Tree, build, canonical_hash, part
from luthier.constitution import cast as casting
from luthier.constitution.cast import BEFORE, PREFERRED, SUPERVISED, Cast
from luthier.constitution.compare import calibrated, compared, drawn, preferences
from luthier.constitution.learn import bare, supervised_rows, train_preferred, train_supervised
from luthier.constitution.measure import Answered, answered, measured, revision_rewards
from luthier.constitution.principles import constitution_of, shipped as shipped
from luthier.constitution.report import Found, write_pages
from luthier.constitution.revise import Prompt, Workshop, first_replies, prompts_of, revised
from luthier.data.write import atomic_text
from luthier.data_stage import Data, prepare_data
from luthier.errors import DataError, RecipeError
from luthier.evaluation.systems.base import System
from luthier.examples import Preference
from luthier.files import sha256_of
from luthier.models.catalog import resolve
from luthier.models.kernels import native
from luthier.progress import Progress
from luthier.recipe import ConstitutionSettings, Recipe
from luthier.registry import name_of
from luthier.run_folder import RunFolder, decisive, differing

DECIDED = "decided.json"
PRINCIPLES = "principles.toml"
MADE = ("replies", "revised", "drawn", "compared", "calibration", "answers")
"""Folders of records that only the same settings may go on with."""
READ_OF: Mapping[str, Sequence[str]] = {
    "data": ("train", "test", "format", "instruction", "validation_share", "test_share", "duplicates"),
    "evaluation": ("confidence",),
    "decision": (),
    "cost": (),
}
"""What is read of tables that are read in part."""
NOT_READ = ("rollout", "teacher", "retrieval")
"""Tables of a recipe that mean nothing here."""


def run_constitution(recipe: Recipe, folder: RunFolder, progress: Progress) -> Path:
    """Do every stage that is not done yet, and return the path of the report.

    Args:
        recipe: with a constitution.
        folder: opened with this recipe.
        progress: told how far it is.

    Raises:
        LuthierError: as each stage does; what was made is kept, and the same call goes on.
        KeyboardInterrupt: ctrl-C; the same.
    """
    settings = require_fit(recipe)
    constitution, source = constitution_of(settings)
    red_team, harmless = prepare_data(recipe, folder, progress), _harmless(recipe, settings, folder, progress)
    if not red_team.test or not harmless.test:
        raise DataError(
            "no prompt of one kind is held out, so nothing could be measured: raise data.test_share, or name data.test "
            "and constitution.harmless_test"
        )
    _require_same(folder, _decides(recipe, settings, source, folder))
    with atomic_text(folder / PRINCIPLES) as copy:
        copy.write(source)
    cast = Cast(recipe, settings, folder, progress)
    for run in settings.reward_models:  # what cannot measure is told before hours of work
        cast.reward_files(run)
    cast.judge_decides()
    shop = Workshop(constitution, settings, recipe.seed, recipe.evaluation.confidence, cast, folder, progress)
    bad = prompts_of((*red_team.train, *red_team.validation), "red_team", settings.red_team_prompts)
    good = prompts_of((*harmless.train, *harmless.validation), "harmless", settings.harmless_prompts)
    held_out = [
        *prompts_of(red_team.test, "red_team", settings.test_prompts),
        *prompts_of(harmless.test, "harmless", settings.test_prompts),
    ]
    found = _learned(recipe, bad, good, held_out, shop)
    return write_pages(recipe, found, shop)


def _learned(recipe: Recipe, bad: list[Prompt], good: list[Prompt], held_out: list[Prompt], shop: Workshop) -> Found:
    """All stages in their order, each of which finds what it made before."""
    settings = shop.settings
    replies = first_replies([*bad, *good], shop)
    revisions = revised(bad, replies[: len(bad)], shop)
    own = list(zip(good, replies[len(bad) :], strict=True))
    rows, no_row = supervised_rows(
        list(zip(bad, revisions, strict=True)), own, given=settings.harmless_replies == "given"
    )
    trainings = {SUPERVISED: train_supervised(recipe, rows, shop)}
    pairs = drawn([*bad, *good], shop)
    records = compared(pairs, shop)
    people = calibrated([p for p in held_out if p.kind == "red_team"], shop)
    chosen, told, no_pair = preferences(records, 1.0 if people is None else people.temperature, shop)
    for two in pairs:
        if two.fault:
            no_pair[two.fault] += 1
    trainings[PREFERRED] = train_preferred(recipe, chosen, shop)
    policies = [SUPERVISED] if objective_of(bare(recipe)).head() is not None else [SUPERVISED, PREFERRED]
    answers = answered(held_out, [BEFORE, *policies], shop)
    answers = Answered(answers.prompts, answers.answers, measured(answers, shop))
    return Found(
        prompts={"red_team": len(bad), "harmless": len(good)},
        revised=revisions,
        revision_rewards=revision_rewards(revisions, shop),
        compared=told,
        not_compared=no_pair,
        without={SUPERVISED: no_row, PREFERRED: no_pair},
        rows={SUPERVISED: len(rows), PREFERRED: len(chosen)},
        trainings=trainings,
        objectives={SUPERVISED: "sft", PREFERRED: name_of(recipe.objective)},
        calibration=people,
        answered=answers,
    )


def require_fit(recipe: Recipe) -> ConstitutionSettings:
    """The recipe's constitution, if all else in it goes with that.

    Raises:
        RecipeError: it does not.
    """
    settings = recipe.constitution
    if settings is None:
        raise RecipeError(
            'the recipe has no constitution: write a table [constitution] with harmless = "FILE" (docs/constitution.md)'
        )
    values, defaults = recipe.dump(), build(Recipe, {"data": {"train": recipe.data.train}}).dump()
    for name in NOT_READ:
        if values[name] is not None:
            raise RecipeError(f"[{name}] changes nothing for `luthier constitution`; remove it")
    for table, but in READ_OF.items():
        if odd := [key for key in differing(defaults[table], values[table]) if key not in but]:
            raise RecipeError(f"{table}.{odd[0]} changes nothing for `luthier constitution`; remove it")
    if values["adapter"].get("start_from") is not None:
        raise RecipeError(
            "adapter.start_from: a constitution begins with the base model; export the earlier run (`luthier export`), "
            "and name what comes out in model.name"
        )
    _require_learner(recipe, settings)
    constitution_of(settings)
    return settings


def _require_learner(recipe: Recipe, settings: ConstitutionSettings) -> None:
    """Check that the objective learns from pairs, and from their probability if that shall be a label."""
    objective, name = objective_of(bare(recipe)), name_of(recipe.objective)
    if Preference not in objective.accepts or objective.least_per_step > recipe.training.rows_per_step:
        raise RecipeError(
            f"objective.type = {name!r} does not learn from {KINDS_OF_ROWS[Preference][1]} in steps of "
            f"{recipe.training.rows_per_step}: a constitution wants 'dpo', which trains the model, or 'reward', which "
            "trains a reward model"
        )
    if settings.labels == "soft" and not objective.reads_probability:
        raise RecipeError(
            f"objective.type = {name!r} as it is set knows no soft labels: set constitution.labels = 'hard', or "
            "objective.type = 'dpo' with penalty = 'sigmoid'"
        )


def _harmless(recipe: Recipe, settings: ConstitutionSettings, folder: RunFolder, progress: Progress) -> Data:
    """The harmless prompts, divided as the red-team ones are, in a folder of their own.

    Raises:
        DataError: a row cannot be read, or there are too few to divide.
    """
    tree: Tree = {key: recipe.data.model_dump()[key] for key in ("validation_share", "test_share", "duplicates")}
    tree |= {"train": settings.harmless, "test": settings.harmless_test}
    values = recipe.dump()
    inner, place = build(Recipe, {**values, "data": tree}), RunFolder(folder / "harmless", listed=False)
    with place.locked():
        place.begin(inner, "# made for harmless prompts\n", folder.path)
        return prepare_data(inner, place, progress)


def _decides(recipe: Recipe, settings: ConstitutionSettings, source: str, folder: RunFolder) -> Tree:
    """What decides all that is made."""
    values = decisive(recipe.dump())
    own = {key: value for key, value in values["constitution"].items() if key not in ("principles", "calibration")}
    files = [
        folder / home / f"data/{name}.jsonl" for home in (".", "harmless") for name in ("train", "validation", "test")
    ]
    critic = None if settings.critic is None else casting.decides(part(settings.critic, System, "constitution.critic"))  # type: ignore[type-abstract]
    return {
        "luthier": __version__,
        "constitution": own,
        "principles": canonical_hash(source),
        "calibration": None if settings.calibration is None else sha256_of(Path(settings.calibration)),
        "rows": [sha256_of(path) for path in files],
        "model": resolve(recipe.model.name).fingerprint,
        "critic": critic,
        "versions": [torch.__version__, native.identity()],
        **{key: value for key, value in values.items() if key not in ("constitution", "data")},
    }


def _require_same(folder: RunFolder, decides: Tree) -> None:
    """Note what decides the records, if nothing else did before.

    Raises:
        RecipeError: there are records that other settings, rows, models or versions decided.
    """
    before = folder.read(DECIDED)
    changed = [] if before is None else differing(before, decides)
    if changed and any((folder / name).is_dir() for name in MADE):
        raise RecipeError(
            f"{folder.path} holds records that were made otherwise (changed: {', '.join(changed)}). Choose another "
            "folder with --out, or remove this one"
        )
    folder.write(DECIDED, decides)
