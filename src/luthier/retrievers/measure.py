"""Whether a trained retriever finds more: every search with it and without, on the same test questions."""

from luthier.data.asked import conversations
from luthier.data.split import group_keys
from luthier.data_stage import Data
from luthier.evaluate import RETRIEVAL, retrievers_in
from luthier.evaluation.retrieval import judged_rows, measure_retrieval, table
from luthier.evaluation.significance import number_groups
from luthier.models.load import choose_device
from luthier.objectives._retriever import RetrieverObjective
from luthier.progress import Progress
from luthier.rag.retriever import used_name
from luthier.recipe import Recipe, RetrievalSettings
from luthier.retrievers.train import with_corpus
from luthier.run_folder import RunFolder


def measure(recipe: Recipe, folder: RunFolder, data: Data, progress: Progress) -> str:
    """Write `retrieval.json`, and return its table for a terminal.

    Raises:
        LuthierError: as `retrievers_in` and `measure_retrieval`.
    """
    settings = with_trained(with_corpus(recipe, folder, data), folder)
    rows = conversations(data.test)[: recipe.evaluation.max_rows]
    if not rows:
        return "There are no test questions: data.test_share is 0, so nothing is measured."
    with folder.timed("retrieval"):
        retrievers = retrievers_in(settings, choose_device(recipe.model.device), progress)
        if not judged_rows(rows, retrievers["bm25"].passages):
            return "No test question names its passages or has a short answer to look for, so nothing is measured."
        groups_N, confidence = number_groups(group_keys(rows)), recipe.evaluation.confidence
        with progress.stage("retrieval", "searching passages"):
            found = measure_retrieval(retrievers, rows, groups_N, used_name(settings), confidence, recipe.seed)
    folder.write(RETRIEVAL, {**found, "key": ""})
    return table(found)


def with_trained(recipe: Recipe, folder: RunFolder) -> RetrievalSettings:
    """The recipe's passages, searched with what the run trained."""
    settings, objective = recipe.retrieval, recipe.objective
    assert settings is not None and isinstance(objective, RetrieverObjective)
    changes: dict[str, str] = {objective.trains: str(folder.path)}
    if objective.trains == "embedder" and settings.retriever == "bm25":  # words alone would not show what was trained
        changes["retriever"] = "hybrid"
    return settings.model_copy(update=changes)
