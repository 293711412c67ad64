"""Search a recipe's passages: measure its retrievers on the questions of a split, or show what one question finds.

No language model is loaded. `recall@5` is the share of questions whose right passage is among the first five; a row
says which that is in `gold_passage_ids`, and without it a passage that holds the answer word for word is right.

examples:
  luthier retrieve recipe.toml
  luthier retrieve recipe.toml --query "When was the bridge opened?"
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier.cli.run_arguments import add_recipe_arguments
from luthier.errors import RecipeError

if TYPE_CHECKING:
    from luthier.rag.retriever import Retriever
    from luthier.recipe import Recipe

SPLITS = ("train", "validation", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `luthier retrieve`."""
    add_recipe_arguments(parser)
    parser.add_argument("--rows", choices=SPLITS, default="test", help="whose questions are asked (default: test)")
    parser.add_argument("--query", metavar="TEXT", help="search for this instead, and print the passages")


def run(args: argparse.Namespace) -> int:
    """Print the table, or the passages for `--query`.

    Raises:
        RecipeError: a setting is wrong, or the recipe has no passages.
        LuthierError: as `build_retrievers` and `measure_retrieval`.
    """
    from luthier.evaluation.retrieval import table
    from luthier.models.load import choose_device
    from luthier.progress import Terminal
    from luthier.rag.retriever import Host, build_retrievers, used_name
    from luthier.recipe import load

    recipe, progress = load(args.recipe, args.set), Terminal()
    if recipe.retrieval is None:
        raise RecipeError(
            f'{args.recipe}: it has no passages to search; write a table [retrieval] with corpus = "corpus.jsonl"'
        )
    with progress.stage("passages", f"reading {recipe.retrieval.corpus}"):
        host = Host(
            choose_device(recipe.model.device),
            progress.say,
            lambda what, done, total: progress.update(done, total, what),
        )
        retrievers = build_retrievers(recipe.retrieval, host)
    if args.query is not None:
        print(_listing(retrievers[used_name(recipe.retrieval)], args.query))
    else:
        print(table(_measured(recipe, retrievers, args.rows)))
    return 0


def _listing(retriever: "Retriever", query: str) -> str:
    """What the query finds, with scores and the places in the sources."""
    (hits,) = retriever.search([query], retriever.top_k)
    lines = []
    for number, hit in enumerate(hits, 1):
        passage = hit.passage
        place = f"{passage.source_id}, characters {passage.start:,} to {passage.end:,}"
        lines.append(f"[{number}] {passage.title or passage.id}  ({place}; {retriever.name} {hit.score:.4f})")
        lines.append(passage.text + "\n")
    return "\n".join(lines) if lines else "Nothing was found."


def _measured(recipe: "Recipe", retrievers: "Mapping[str, Retriever]", split: str) -> Mapping[str, Any]:
    from luthier.data.asked import conversations
    from luthier.data.split import group_keys
    from luthier.data_stage import divide
    from luthier.evaluation.retrieval import measure_retrieval
    from luthier.evaluation.significance import number_groups
    from luthier.rag.retriever import used_name

    assert recipe.retrieval is not None
    rows = conversations(divide(recipe)[0].named()[split])
    if split == "test":
        rows = rows[: recipe.evaluation.max_rows]  # those that a run asks
    groups_N, confidence = number_groups(group_keys(rows)), recipe.evaluation.confidence
    return measure_retrieval(retrievers, rows, groups_N, used_name(recipe.retrieval), confidence, recipe.seed)
