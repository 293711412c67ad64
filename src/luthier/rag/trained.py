"""An embedder or a reranker that a run trained, where a setting names the run: what lies in its folder `adapter`."""

import json
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.objectives._retriever import Part

KINDS = {"embedder": "an embedder", "reranker": "a reranker"}
ARTIFACT, RECORD = "adapter", "run.json"


def model_of(name: str, part: Part) -> str:
    """The model that a setting names: of a run the one that it trained, else the name as it stands.

    Raises:
        ModelError: the run trained none, or another part.
    """
    run = Path(name)
    if not (run / "recipe.json").is_file():
        return name
    folder = run / ARTIFACT
    if not (folder / RECORD).is_file():
        raise ModelError(f"{run} is a run that has trained nothing yet; `luthier train` goes on with it")
    trained = str(record_of(folder).get("trains"))
    if trained != part:
        raise ModelError(
            f"{run} is a run that trained {KINDS.get(trained, 'a model that writes')}, and is named as {part}; "
            "expected a run whose objective trains one (docs/retrievers.md)"
        )
    return str(folder)


def record_of(folder: Path) -> dict[str, Any]:
    """What is noted beside a trained model; empty where nothing is.

    Raises:
        ModelError: the note is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None
    return record if isinstance(record, dict) else {}
