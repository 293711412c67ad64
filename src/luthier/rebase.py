"""A run done again on another base: the same recipe, the very same rows and split, and which of the two to use.

The rows are read from the old run's folder, not split again, and their digests are compared, so every answer of the new
run has its pair in the old one. "Clearly better" and "tie" are those of `report/ladder.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from luthier import assemble
from luthier.comparison import Comparison, NotComparable, Paired, Shared, Side
from luthier.config import build, override, write_toml
from luthier.errors import EvaluationError, ModelError, RecipeError
from luthier.evaluate import REMEMBER
from luthier.recipe import DecisionSettings, Recipe, absolute_paths
from luthier.remember.candidates import PLAIN
from luthier.report.ladder import failure_share
from luthier.report.phrases import spoken
from luthier.report.schema import System
from luthier.report.text import count, difference, label, percent
from luthier.run_folder import RunFolder, recipe_of
from luthier.run_registry import Parent, read_entry

SMALLER = 0.8
"""Of two models that tie, the new one is worth the move if its base has at most this share of the old one's parameters.
Not seconds: on a machine with other work, two bases of one size differed by a factor of two."""


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    recipe: Recipe
    source: str
    """The recipe as TOML."""
    home: Path
    """Where external programs run: the folder of the old recipe."""
    parent: Parent
    held: Mapping[str, str]
    """The number format that `auto` meant for the old run, so that the two differ in the base alone."""
    learning_rate: str
    """What becomes of it, in a sentence."""


def plan_rebase(run: Path, model: str, assignments: Sequence[str] = ()) -> Plan:
    """The recipe of `run` on another base, with its rows as they were split.

    Args:
        run: an evaluated run's folder.
        model: the new base; a relative path is read from where the command is given.
        assignments: further settings, as `--set` takes them.

    Raises:
        RecipeError: it is no run, a remedy against forgetting took the place of its training, it went on from a run on
            the old base, or a setting is wrong or would change the rows.
        EvaluationError: it was not evaluated, so there would be nothing to compare with.
        ModelError: it was merged, not trained.
        StorageError: a file of it is damaged.
    """
    folder, tree, entry = RunFolder(run), recipe_of(run).dump(), read_entry(run)
    manifest = folder.read("manifest.json")
    if entry is None or folder.read("data/split.json") is None:
        raise RecipeError(f"{run} has no rows yet: `luthier run` makes them")
    if (folder / "adapter").is_dir() and "merged" in assemble.artifact_record(folder / "adapter"):
        raise ModelError(f"{run} was merged, not trained; rebase the runs that it was merged from")
    if entry.stage not in ("evaluated", "reported"):
        raise EvaluationError(f"{run} is not trained and measured, so there is nothing to compare; finish it first")
    touched = [one for one in assignments if one.partition("=")[0].strip().partition(".")[0] in ("data", "seed")]
    if touched:
        raise RecipeError(f"--set {touched[0]}: a rebase keeps the rows and the seed, so that the base alone differs")
    if (kept := folder.read(REMEMBER)) is not None and kept["chosen"] != PLAIN.name:
        raise RecipeError(
            f"{run}: `luthier train --remember` put {kept['chosen'] or 'a remedy'} in place of the recipe's own "
            "training, and a rebase repeats the recipe alone; run the recipe with the settings of the remedy "
            "(remember.html names them) in a folder of its own, and rebase that run"
        )
    start = tree["adapter"].get("start_from")
    if start is not None and not any(one.partition("=")[0].strip() == "adapter.start_from" for one in assignments):
        raise RecipeError(
            f"{run} went on from {start}, whose adapter is one of the old base: rebase that run first, and name what "
            "comes of it with --set adapter.start_from=FOLDER"
        )
    names = ("train", "validation", "test", *(["replay"] if tree["data"].get("replay") else []))
    tree["data"] |= {name: str((folder / f"data/{name}.jsonl").resolve()) for name in names}
    tree["data"] |= {"format": "auto", "instruction": None}  # the rows are in the one form, the instruction in them
    tree["model"]["name"] = absolute_paths({"model": {"name": model}}, Path.cwd())["model"]["name"]
    home = Path(manifest["recipe_folder"])
    tree = absolute_paths(override(tree, assignments), home)
    recipe = build(Recipe, tree)
    given = tree["optimizer"].get("learning_rate")
    rate = (
        f"learning rate {given:g}, as the recipe says"
        if given is not None
        else f"learning rate: the recipe names none, so that of the adapter, {assemble.rate_of(recipe):g}"
    )
    parent = Parent(id=entry.id, folder=entry.folder, relation="rebase of")
    precision = (manifest.get("held") or {}).get("precision") if recipe.model.precision == "auto" else None
    return Plan(recipe, write_toml(tree), home, parent, {"precision": precision} if precision else {}, rate)


@dataclass(frozen=True)
class Verdict:
    """Whether to go over to the new base."""

    decision: Literal["keep", "move"]
    sentence: str
    notes: tuple[str, ...] = ()
    """What else must be known."""


def decide(old: Side, new: Side, comparison: Comparison) -> Verdict:
    """Keep the old model or move to the new one, with the reason in a sentence."""
    tuned = old.system(old.report.verdict.fine_tuned or ""), new.system(new.report.verdict.fine_tuned or "")
    if tuned[0] is None or tuned[1] is None:
        return Verdict("keep", "Keep: one of the runs has no fine-tuned model that was measured on held-out rows.")
    shared = Shared(old, new)
    try:
        paired = shared.pair(tuned[0], tuned[1])
    except NotComparable as reason:
        return Verdict("keep", f"Keep: the two models cannot be compared: {reason}.")
    choice, reason_text = choose(old, new, (tuned[0], tuned[1]), paired, comparison)
    return Verdict(choice, f"{choice.capitalize()}: {reason_text}.", _notes(shared, tuned[0]))


def choose(
    old: Side, new: Side, tuned: tuple[System, System], paired: Paired, comparison: Comparison
) -> tuple[Literal["keep", "move"], str]:
    """The decision and its reason, from the two fine-tuned systems (`tuned`) as they are `paired`."""
    base, d = new.recipe["model"]["name"], paired.difference
    shown = (
        f"{difference(d.difference, d.low, d.high)} on {label(d.metric)} over {comparison.test_rows} shared test rows"
    )
    most = build(DecisionSettings, new.recipe.get("decision") or {}, ["decision"]).most_failures
    if failure_share(tuned[1]) > most:
        return (
            "keep",
            f"the model on {base} fails the wanted format in {percent(failure_share(tuned[1]))} of its answers",
        )
    if paired.better == "second":
        return "move", f"the model on {base} is clearly better ({shown})"
    if paired.better == "first":
        return "keep", f"the model on {base} is clearly worse ({shown})"
    if failure_share(tuned[0]) > most:
        return "move", f"no worse for certain ({shown}), and the old model fails the wanted format too often"
    if paired.better == "unknown":
        return "keep", f"these rows cannot tell which is better ({shown})"
    sizes = [(side.manifest.get("model") or {}).get("parameters") for side in (old, new)]
    if sizes[0] and sizes[1] and sizes[1] <= SMALLER * sizes[0]:
        return "move", f"the two tie ({shown}), and {base} has {count(sizes[1])} parameters, not {count(sizes[0])}"
    return "keep", f"the two tie ({shown}), which is no reason to move"


def _notes(shared: Shared, tuned: System) -> tuple[str, ...]:
    """That a prompt on the new base does what the old training did; that general ability was lost."""
    new, notes = shared.second, []
    prompt = new.system(new.report.verdict.baseline or "")
    if prompt is not None:
        try:
            paired = shared.pair(tuned, prompt)
        except NotComparable as reason:
            notes.append(f"{spoken(prompt)} on the new base is not compared with the old model: {reason}.")
        else:
            if paired.better in ("second", "tie"):
                d, verb = paired.difference, "beats" if paired.better == "second" else "ties with"
                shown = difference(d.difference, d.low, d.high)
                notes.append(f"Without any training, {spoken(prompt)} on the new base {verb} the old model ({shown}).")
    notes += [f"The new run: {warning}" for warning in new.report.verdict.warnings]
    return tuple(notes)
