"""Paths of a recipe are read from its own folder."""

import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from luthier.config import Tree


def absolute_paths(tree: Tree, folder: Path) -> Tree:
    """A copy in which every path of the recipe that is relative is read from `folder`, the recipe's own.

    Names that are no paths stay as they are: a hub id or catalog name, a built-in template, `builtin`, `none`.
    """
    tree = deepcopy(tree)
    for *groups, key in _PATHS:
        table: Any = tree
        for group in groups:
            table = table.get(group) if isinstance(table, dict) else None
        value = table.get(key) if isinstance(table, dict) else None
        if isinstance(value, str) and value and _is_path(key, value, folder):
            table[key] = os.path.normpath(folder / value)
    for model in _models(tree):
        if model.get("type") == "local_model" and isinstance(name := model.get("model"), str):
            model["model"] = os.path.normpath(folder / name) if _is_path("name", name, folder) else name
    constitution = tree.get("constitution")
    if isinstance(constitution, dict) and isinstance(runs := constitution.get("reward_models"), list):
        constitution["reward_models"] = [os.path.normpath(folder / r) if isinstance(r, str) else r for r in runs]
    for grader in _graders(tree):
        if isinstance(runs := grader.get("runs"), list):
            grader["runs"] = [os.path.normpath(folder / run) if isinstance(run, str) else run for run in runs]
    return tree


def _models(tree: Tree) -> Iterator[Tree]:
    """The tables of models that graders of rollouts ask, and of those of a constitution."""
    rollout, constitution = tree.get("rollout"), tree.get("constitution")
    models = rollout.get("models") if isinstance(rollout, dict) else None
    found = list(models.values()) if isinstance(models, dict) else []
    found += [constitution.get(key) for key in ("critic", "judge")] if isinstance(constitution, dict) else []
    yield from (table for table in found if isinstance(table, dict))


def _graders(tree: Tree) -> Iterator[Tree]:
    """The tables of all graders of rollouts, those within others too."""
    rollout = tree.get("rollout")
    rewards = rollout.get("rewards") if isinstance(rollout, dict) else None
    tables = list(rewards.values()) if isinstance(rewards, dict) else []
    waiting = [table.get("grader") for table in tables if isinstance(table, dict)]
    while waiting:
        if isinstance(grader := waiting.pop(), dict):
            yield grader
            inner = grader.get("graders")
            waiting += [inner, *inner.values()] if isinstance(inner, dict) else []  # a table of them, or a single one


_PATHS = (
    ("model", "name"),
    ("model", "template"),
    ("adapter", "start_from"),
    ("data", "train"),
    ("data", "validation"),
    ("data", "test"),
    ("rollout", "vllm", "python"),
    ("teacher", "model"),
    ("teacher", "run"),
    ("teacher", "template"),
    ("teacher", "prompt"),
    ("teacher", "examples"),
    ("constitution", "principles"),
    ("constitution", "harmless"),
    ("constitution", "harmless_test"),
    ("constitution", "calibration"),
    ("retrieval", "corpus"),
    ("retrieval", "embedder"),
    ("retrieval", "reranker"),
    ("data", "replay"),
    ("evaluation", "json_schema"),
    ("evaluation", "forgetting", "multiple_choice"),
    ("evaluation", "forgetting", "text"),
    ("cost", "prices"),
)


def _is_path(key: str, value: str, folder: Path) -> bool:
    if key in ("name", "model", "embedder", "reranker"):  # `org/model` is a hub id unless there is such a folder
        return (folder / value).exists()
    if key == "template":
        return value.endswith(".jinja")
    return key not in ("multiple_choice", "text", "principles") or value not in ("builtin", "none")
