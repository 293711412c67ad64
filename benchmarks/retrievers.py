"""Whether training an embedder and a reranker on a few hundred questions finds more passages of unseen articles.

    python -m benchmarks.retrievers --data FOLDER [--seeds 0 1] [--minutes 30]

FOLDER holds `rag_qa`: 735 training questions, 300 test questions about other articles, and 773 paragraphs of
Wikipedia. MiniLM is trained on the questions, with the passages that words and its own vectors rank highest as wrong
ones; then a cross-encoder that begins as the same MiniLM, on what the trained embedder finds. Each is compared on all
test questions with what it began from, question by question; the interval is over articles, of the mean over seeds. A
training is a whole `luthier train` under `--out`, and goes on where it was. Writes its table into docs/methods.md.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._methods import asked_of, commit_of, prepared, stopped, to_its_end, write_section
from luthier.config import write_toml
from luthier.data.formats.base import read_examples
from luthier.evaluation.retrieval import DEPTH, judged_rows, score
from luthier.evaluation.significance import gain_interval, mean_interval, number_groups
from luthier.examples import Conversation
from luthier.rag.prompt import last_question
from luthier.rag.retriever import Host, build_retrievers
from luthier.recipe import RetrievalSettings

METRICS = ("recall_at_1", "recall_at_5", "mrr")
NAMES = {
    "bm25": "words (BM25)",
    "dense_before": "MiniLM",
    "hybrid_before": "words and MiniLM",
    "dense": "MiniLM, trained",
    "hybrid": "words and MiniLM, trained",
    "reranked": "the same, reranked",
}
AGAINST = {"dense": "dense_before", "hybrid": "hybrid_before", "reranked": "hybrid"}
HEAD = [
    "| retriever | seeds | questions | recall@1 | recall@5 | MRR@10 | gain in recall@1 | gain in MRR@10 "
    "| MRR@10, each seed | commit |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def recipes(asked: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """The two trainings, by what they train."""
    data = (asked.data / "rag_qa").resolve()
    steps = 0.8 * 735 / 16 * asked.epochs
    shared = {
        "seed": seed,
        "model": {"name": asked.model},
        "data": {"train": str(data / "train.jsonl"), "test": str(data / "test.jsonl"), "validation_share": 0.2},
        "adapter": {"type": "full"},
        "training": {"epochs": asked.epochs, "rows_per_step": 16, "validate_every": max(1, round(steps / 4))},
    }
    passages = {"corpus": str(data / "corpus.jsonl"), "chunk_words": False}
    return {
        "embedder": {
            **shared,
            "retrieval": passages,
            "objective": {"type": "contrastive", "negatives": 2, "validation_passages": 400},
            "optimizer": {"learning_rate": asked.embedder_rate},
        },
        "reranker": {
            **shared,
            "retrieval": {**passages, "embedder": "../embedder/run"},
            "objective": {"type": "rerank", "negatives": 4},
            "optimizer": {"learning_rate": asked.reranker_rate},
        },
    }


def trained(recipe: Path, run: Path, until: float | None) -> bool:
    """Train, or go on; whether it is done."""
    done = (run / "training.json").is_file() and (run / "adapter/run.json").is_file()
    return done or to_its_end(["train", str(recipe), "--out", str(run)], until)


@dataclass(frozen=True)
class Figures:
    """What the retrievers of one seed reach."""

    values: Mapping[str, Mapping[str, Sequence[float]]]
    """By retriever and metric, of each test question."""
    articles: Sequence[str]
    """That each question is about."""


def figures(data: Path, runs: Mapping[str, Path], kept: Path) -> Figures:
    """Of the runs of one seed; kept in a file, since rerankers take minutes."""
    if kept.is_file():
        return Figures(**json.loads(kept.read_text(encoding="utf-8")))
    embedder, reranker = str(runs["embedder"]), str(runs["reranker"])
    corpus = str(data / "rag_qa/corpus.jsonl")
    settings = RetrievalSettings(corpus=corpus, chunk_words=None, embedder=embedder, reranker=reranker)
    retrievers = build_retrievers(settings, Host(say=lambda text: print(text, file=sys.stderr)))
    passages = retrievers["bm25"].passages
    rows = [row for row in read_examples(data / "rag_qa/test.jsonl") if isinstance(row, Conversation)]
    judged, titles = judged_rows(rows, passages), {passage.source_id: passage.title for passage in passages}
    asked, values = [last_question(one.row.prompt) for one in judged], {}
    for name, retriever in retrievers.items():
        hits = retriever.search(asked, DEPTH)
        scores = [score(one.relevance(of), one.right) for one, of in zip(judged, hits, strict=True)]
        values[name] = {metric: [one[metric] for one in scores] for metric in METRICS}
    found = Figures(values, [titles[min(one.gold)] for one in judged])
    kept.write_text(json.dumps(asdict(found)), encoding="utf-8")
    return found


def line(name: str, seeds: Sequence[Figures], commit: str) -> str:
    """A row of the table: means over seeds, intervals over articles."""
    groups_N = number_groups(seeds[0].articles)

    def mean_N(retriever: str, metric: str) -> np.ndarray:
        mean: np.ndarray = np.mean([of_seed.values[retriever][metric] for of_seed in seeds], axis=0)
        return mean

    reached = [mean_interval(mean_N(name, metric), groups_N=groups_N) for metric in METRICS]
    cells = [f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]" for found in reached]
    gains, each = ["", ""], ""
    if against := AGAINST.get(name):
        pairs = [mean_N(name, metric) - mean_N(against, metric) for metric in ("recall_at_1", "mrr")]
        found = [gain_interval(values_N, groups_N=groups_N) for values_N in pairs]
        gains = [f"{one.value:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for one in found]
        each = ", ".join(f"{np.mean(of_seed.values[name]['mrr']):.3f}" for of_seed in seeds)
    counts = [str(len(seeds)) if against else "", f"{len(groups_N)} of {int(groups_N.max()) + 1} articles"]
    return f"| {' | '.join([NAMES[name], *counts, *cells, *gains, each, commit])} |"


def main() -> int:
    rates = {"embedder_rate": 2e-5, "reranker_rate": 5e-5}
    asked, until = asked_of(__doc__, "retrievers", "rag_qa", "all-minilm-l6-v2", 2.0, **rates)
    seeds: list[Figures] = []
    commit = ""
    for seed in asked.seeds:
        runs: dict[str, Path] = {}
        for part, recipe in recipes(asked, seed).items():
            place = prepared(asked.out / str(seed) / part, {"recipe.toml": write_toml(recipe)})
            runs[part] = place / "run"
            if not trained(place / "recipe.toml", runs[part], until):
                return stopped(place)
        seeds.append(figures(asked.data, runs, asked.out / str(seed) / "figures.json"))
        commit = commit or commit_of(runs["embedder"])
        write_section("retrievers", [*HEAD, *(line(name, seeds, commit) for name in NAMES)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
