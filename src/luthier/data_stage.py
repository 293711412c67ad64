"""The first stage of a run over its folder: its rows read, checked and divided; kept there as long as they are true."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import __version__
from luthier.config import canonical_hash
from luthier.data.asked import with_place_for_reply
from luthier.data.checks._text import exact_content
from luthier.data.checks.base import EMPTY_REPLY, Finding, run_checks
from luthier.data.corpus_leaks import corpus_leaks
from luthier.data.formats.base import read_examples, sniff
from luthier.data.replay import Pool, build_pool
from luthier.data.split import Split, split
from luthier.data.write import write_examples
from luthier.errors import DataError
from luthier.evaluation.passage_groups import by_passage, named
from luthier.examples import Example, Where
from luthier.files import sha256_of
from luthier.objectives._retriever import RetrieverObjective
from luthier.progress import Progress
from luthier.rag.corpus import read_corpus
from luthier.recipe import Recipe
from luthier.run_folder import RunFolder

SPLITS = ("train", "validation", "test")  # keys of `data` in a recipe, too


@dataclass(frozen=True)
class Data:
    """The rows of a run."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]
    replay: Sequence[Example] = ()
    """What may be mixed into training, in the order in which it is taken; it belongs to no split."""

    def named(self) -> dict[str, Sequence[Example]]:
        """By split, train first."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


# Data


def prepare_data(recipe: Recipe, folder: RunFolder, progress: Progress) -> Data:
    """Read, split and check the rows; the result is kept in the run's folder.

    Raises:
        DataError: a row cannot be read, or a check found an error; `findings.json` then tells all of it. Or this run
            was trained already, on other rows than the files hold now.
    """
    digests, corpus = _digests(recipe), _corpus(recipe)
    shown = canonical_hash([text for text, _ in corpus])
    read_as = [_is_replied(recipe), isinstance(recipe.objective, RetrieverObjective)]
    key = canonical_hash([__version__, recipe.data.model_dump(), recipe.seed, digests, shown, read_as])
    kept = folder.read("data/split.json")
    if kept is not None and kept["key"] == key and kept["written"] == _written(folder):
        _require_no_errors([Finding.from_dict(f) for f in folder.read("findings.json")])
        names = (*SPLITS, *(["replay"] if recipe.data.replay else []))
        counts = {name: kept[name] for name in SPLITS}
        return Data(
            *(list(read_examples(folder / f"data/{name}.jsonl")) if counts.get(name, 1) else [] for name in names)
        )
    if recipe.data.format == "auto":
        for path in filter(None, _files(recipe).values()):
            progress.say(f"  {path}: read as {sniff(Path(path))}")
    with progress.stage("check", "reading and checking the data"), folder.timed("check"):
        data, counts, findings = divide(recipe)
        _require_what_was_trained_on(recipe, folder, kept, data)
        findings = [*findings, *corpus_leaks(corpus, data.test)]
        folder.write("findings.json", [finding.to_dict() for finding in findings])
        _require_no_errors(findings)
        for name, examples in (data.named() | ({"replay": data.replay} if data.replay else {})).items():
            write_examples(folder / f"data/{name}.jsonl", examples)
        folder.write("data/split.json", {**counts, "key": key, "written": _written(folder)})
        folder.record(data=_sources(recipe, data, digests))
    rows = ", ".join(f"{len(examples):,} {name}" for name, examples in data.named().items())
    worst = ", ".join(f"{sum(f.severity == s for f in findings)} {s}s" for s in ("warning", "note"))
    progress.say(f"  rows: {rows}; findings: {worst} (in findings.json and the report)")
    return data


def _require_what_was_trained_on(recipe: Recipe, folder: RunFolder, kept: Mapping[str, Any] | None, data: Data) -> None:
    """Test rows may change after a training; if the others did, what was trained on may now be asked in the test."""
    is_trained = (folder / "adapter").is_dir() or any((folder / "checkpoints").glob("step-*"))
    if kept is None or not is_trained:
        return
    for name in ("train", "validation"):
        path = folder / f"data/{name}.now.jsonl"
        now = write_examples(path, data.named()[name])
        digest = sha256_of(path)
        path.unlink()
        if digest != kept["written"][f"{name}.jsonl"]:
            source = _files(recipe)[name] or recipe.data.train
            raise DataError(
                f"the {name} rows are not those that {folder.path} was trained with: {kept[name]:,} then, {now:,} now, "
                "and not the same. Bring the file back, or use another --out",
                source,
            )


def _files(recipe: Recipe) -> dict[str, str | None]:
    """The file of each split, None where it is a share of the training rows."""
    return {name: path for name, path in recipe.data.model_dump().items() if name in SPLITS}


def _corpus(recipe: Recipe) -> list[tuple[str, Where]]:
    """The texts that systems may be shown, each behind its title, and where it stands."""
    if recipe.retrieval is None:
        return []
    sources = read_corpus(Path(recipe.retrieval.corpus))
    return [(f"{s.title}\n{s.text}" if s.title else s.text, s.where) for s in sources]


def _digests(recipe: Recipe) -> dict[str, str]:
    digests = {}
    for name, path in {**_files(recipe), "replay": recipe.data.replay}.items():
        try:
            if path is not None:
                digests[name] = sha256_of(Path(path))
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", path) from None
    return digests


def _written(folder: RunFolder) -> dict[str, str | None]:
    """sha256 of what this stage leaves in the folder, None where a file is missing."""
    paths = [folder / "findings.json", *(folder / f"data/{name}.jsonl" for name in SPLITS)]
    paths += (folder / "data").glob("replay.jsonl")
    return {path.name: sha256_of(path) if path.is_file() else None for path in paths}


def divide(recipe: Recipe) -> tuple[Data, dict[str, Any], list[Finding]]:
    """Read, split and check the rows of a recipe, and count; nothing is written.

    The checks see the repeated rows that `data.duplicates` then leaves out of training.

    Raises:
        DataError: a row cannot be read, or there are too few to split.
    """
    settings, titles = recipe.data, _titles(recipe)

    def read(path: str) -> list[Example]:
        examples = list(read_examples(Path(path), settings.format, settings.instruction))
        if titles is not None:
            return by_passage([named(example) for example in examples], titles)
        return [with_place_for_reply(example) for example in examples] if _is_replied(recipe) else examples

    given = {name: path for name, path in _files(recipe).items() if name != "train"}
    taken = {name: read(path) for name, path in given.items() if path is not None}
    shares = {"validation": settings.validation_share, "test": settings.test_share}
    taken |= {} if settings.test_share or "test" in taken else {"test": []}
    shares = {name: share for name, share in shares.items() if name not in taken}
    parts = split(read(settings.train), shares, recipe.seed, taken=taken)
    findings = run_checks(Data(parts.train, parts.validation, parts.test).named())
    if _is_replied(recipe):  # a row that is only asked needs no reply
        findings = [finding for finding in findings if finding.message != EMPTY_REPLY]
    pool = _pool(recipe, parts)
    findings += pool.findings() if pool else []
    training = _without_repeats(parts.train) if settings.duplicates == "drop" else parts.train
    counts = {
        **parts.counts,
        "train": len(training),
        "groups": parts.groups,
        "leaks": len(parts.leaks),
        "dropped_duplicates": len(parts.train) - len(training),
        "notes": list(parts.notes),
        **({"replay": pool.counts()} if pool else {}),
    }
    return Data(training, parts.validation, parts.test, pool.rows if pool else ()), counts, findings


def _titles(recipe: Recipe) -> dict[str, str] | None:
    """Of the passages that rows may name, by their ids; None where rows name none."""
    if not isinstance(recipe.objective, RetrieverObjective):
        return None
    sources = () if recipe.retrieval is None else read_corpus(Path(recipe.retrieval.corpus))
    return {source.id: source.title for source in sources}


def _is_replied(recipe: Recipe) -> bool:
    """Whether replies are written to the rows."""
    by_a_teacher = recipe.teacher is not None and recipe.teacher.replies == "teacher"
    return recipe.rollout is not None or recipe.constitution is not None or by_a_teacher


def _pool(recipe: Recipe, parts: Split) -> Pool | None:
    """What may be replayed; an instruction that the recipe has for its own rows is not for these."""
    path = recipe.data.replay
    if path is None:
        return None
    pool = build_pool(read_examples(Path(path)), {"validation": parts.validation, "test": parts.test}, recipe.seed)
    if not pool.rows:
        raise DataError("no row of it can be replayed: each asks what a held-out row asks", path)
    return pool


def _without_repeats(examples: Sequence[Example]) -> list[Example]:
    """The examples without exact repeats of an earlier one; ids and extra fields apart."""
    seen: dict[str, Example] = {}
    for example in examples:
        seen.setdefault(exact_content(example), example)
    return list(seen.values())


def _require_no_errors(findings: Sequence[Finding]) -> None:
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        lines = [f"  {f.check}: {f.message} ({f.where[0] if f.where else 'everywhere'}) {f.advice}" for f in errors]
        raise DataError(f"the data checks found {len(errors)} error(s):\n" + "\n".join(lines))


def _sources(recipe: Recipe, data: Data, digests: Mapping[str, str]) -> dict[str, Any]:
    found = {
        name: {
            "path": path or f"a share of {recipe.data.train}",
            "sha256": digests.get(name),
            "rows": len(data.named()[name]),
        }
        for name, path in _files(recipe).items()
    }
    if recipe.data.replay:
        found["replay"] = {"path": recipe.data.replay, "sha256": digests["replay"], "rows": len(data.replay)}
    return found
