"""The trainings of a constitution's run: each is a run in a folder of its own, with gates, checkpoints and resume.

supervised.jsonl     chats that end with what is left after the revisions, and helpful ones
supervised/          the training on them
preferences.jsonl    pairs, each with the critic's probability that the chosen reply is the better one
preferred/           the training on them, from where the first one ended
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.assemble import adapter_of, read_artifact
from luthier.config import Tree, build, write_toml
from luthier.constitution.batches import Record
from luthier.constitution.cast import PREFERRED, SUPERVISED
from luthier.constitution.revise import Prompt, Workshop
from luthier.data.write import write_examples
from luthier.data_stage import prepare_data
from luthier.errors import DataError, ModelError
from luthier.examples import Conversation, Example, Message
from luthier.files import sha256_of
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder
from luthier.stages import open_run, prepare_training, train_stage, training_line

SUPERVISED_ROWS = "supervised.jsonl"
PAIRS = "preferences.jsonl"
NOT_REVISED = "no revision took its place"
DONE = ("finished", "early")
"""How a training ended that need not be opened again."""


def supervised_rows(
    red_team: Sequence[tuple[Prompt, Record]], harmless: Sequence[tuple[Prompt, Record]], given: bool
) -> tuple[list[Conversation], Counter[str]]:
    """What is learned from, and how many prompts gave no row, by the reason.

    Args:
        red_team: with what is left after the revisions.
        harmless: with the model's own reply.
        given: whether the reply of a harmless prompt's row is taken in place of the model's own.
    """
    rows: list[Conversation] = []
    without: Counter[str] = Counter()
    for prompt, record in (*red_team, *harmless):
        text, fault = record.get("final", record["reply"]), record["fault"]
        if given and prompt.kind == "harmless":
            text, fault = prompt.given or "", record.get("given_fault", "its row gives no reply")
        by = [step["principle"] for step in record.get("steps", ()) if not step["fault"]]
        if not fault and prompt.kind == "red_team" and not by:
            fault = NOT_REVISED  # what the model said by itself is what it shall unlearn
        if fault:
            without[fault] += 1
            continue
        extra = {"kind": prompt.kind, "revised_by": by}
        rows.append(Conversation((*prompt.messages, Message("assistant", text)), id=prompt.id, extra=extra))
    return rows, without


def train_supervised(recipe: Recipe, rows: Sequence[Conversation], shop: Workshop) -> Mapping[str, Any]:
    """Train on revised replies; what `training.json` says of it.

    Raises:
        LuthierError: as the stages of any run.
    """
    tree, supervised = _tree(recipe, shop), shop.settings.supervised
    tree["optimizer"]["learning_rate"] = supervised.learning_rate
    given = supervised.model_dump(exclude={"learning_rate"}, exclude_none=True)
    tree["training"] |= given if supervised.epochs is None else {"steps": None, **given}
    tree["objective"] = {"type": "sft"}
    return _trained(recipe, tree, SUPERVISED, SUPERVISED_ROWS, rows, shop)


def train_preferred(recipe: Recipe, pairs: Sequence[Example], shop: Workshop) -> Mapping[str, Any]:
    """Train on preferences, from where the supervised training ended; what `training.json` says of it.

    Raises:
        LuthierError: as the stages of any run.
    """
    tree = _tree(recipe, shop)
    before = shop.folder / SUPERVISED
    if adapter_of(bare(recipe)).overwrites_base:  # its artifact is a model, and no adapter that could be gone on from
        tree["model"] |= {"name": str((before / "adapter").resolve())}
    else:
        tree["adapter"]["start_from"] = str(before.resolve())
    return _trained(recipe, tree, PREFERRED, PAIRS, pairs, shop)


def bare(recipe: Recipe) -> Recipe:
    """The recipe without its constitution, as every other stage takes it."""
    return recipe.model_copy(update={"constitution": None})


def _tree(recipe: Recipe, shop: Workshop) -> Tree:
    """The settings of a training inside this run."""
    tree = bare(recipe).dump()
    tree["model"]["precision"] = shop.cast.precision
    # earlier replies of a talk are somebody else's
    tree["data"] = {"loss_on": "last_assistant", "validation_share": recipe.data.validation_share, "test_share": 0}
    return {key: value for key, value in tree.items() if value is not None}


def _trained(
    recipe: Recipe, tree: Tree, name: str, file: str, rows: Sequence[Example], shop: Workshop
) -> Mapping[str, Any]:
    if not rows:
        raise DataError(f"nothing is left to train {name} on; the records beside it say why", shop.folder.path)
    path, folder = shop.folder / file, RunFolder(shop.folder / name, listed=False)
    write_examples(path, rows)
    tree["data"]["train"] = str(path.resolve())
    inner = build(Recipe, tree)
    shop.progress.say(f"the training {name}, on {len(rows):,} rows")
    with folder.locked():
        if not _is_done(folder, sha256_of(path)):
            shop.cast.release()
            folder.begin(inner, write_toml(tree), shop.folder.path)
            data = prepare_data(inner, folder, shop.progress)
            train_stage(prepare_training(open_run(inner, folder, data, shop.progress), shop.progress), shop.progress)
    summary: Mapping[str, Any] = folder.read("training.json")
    shop.progress.say("  " + training_line(dict(summary)))
    return summary


def _is_done(folder: RunFolder, rows: str) -> bool:
    """Whether the training on the rows with this digest ended, and left a whole artifact."""
    if (folder.read("training.json") or {}).get("stopped") not in DONE:
        return False
    if (folder.read("manifest.json") or {}).get("data", {}).get("train", {}).get("sha256") != rows:
        return False
    try:
        read_artifact(folder.path)
    except ModelError:
        return False
    return True
