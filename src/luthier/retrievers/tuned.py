"""What a run of a retriever trains: a base encoder opened as it will answer, its texts as tokens, and its artifact.

The artifact is a folder of its own, which transformers opens and, of an embedder, sentence-transformers too: an adapter
is folded into its base, since an encoder is small and what searches with it need not know how it was trained.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import torch
from torch import nn

from luthier import __version__
from luthier.assemble import RECORD
from luthier.engine.run import Run
from luthier.examples import Row
from luthier.files import sha256_of, sync
from luthier.models.catalog import ModelFiles, resolve
from luthier.models.encoder import EncoderScorer, without_dropout
from luthier.models.forest import Batch
from luthier.models.load import LoadedModel, no_progress_bars
from luthier.objectives._retriever import Pairs, Part, Singles, Sought, Texts, encoder_of, pair_row, text_row
from luthier.objectives.base import Models
from luthier.rag.embedder import POOLING, Embedder
from luthier.rag.passages import Passage
from luthier.rag.reranker import CrossEncoder
from luthier.recipe import Recipe


class Tuned(ABC, Generic[Texts]):
    """The encoder of a run."""

    files: ModelFiles
    tokenizer: Any
    max_tokens: int
    """Of a text, or of a pair of them; longer ones are cut."""

    @property
    @abstractmethod
    def model(self) -> Any:
        """What trains."""

    @abstractmethod
    def texts(self, passages: Sequence[Passage]) -> Texts:
        """Questions and the passages of a corpus as tokens, as they are read where the encoder answers."""

    @abstractmethod
    def probes(self, sought: Sequence[Sought], passages: Sequence[Passage]) -> tuple[list[Row], torch.Tensor]:
        """Texts of these questions as rows, and what is made of the same texts where it answers."""

    @abstractmethod
    def trained(self, models: Models, batch: Batch) -> torch.Tensor:
        """What is made of rows where it trains."""

    @abstractmethod
    def write(self, model: Any, folder: Path) -> None:
        """Write the trained encoder as a folder that others open."""

    def scorer(self) -> EncoderScorer:
        """It as an objective sees it."""
        return EncoderScorer(self.model, self.tokenizer.pad_token_id)

    def loaded(self) -> LoadedModel:
        """It as the engine sees it."""
        device = next(self.model.parameters()).device
        return LoadedModel(self.model, self.tokenizer, frozenset(), self.max_tokens, self.files, torch.float32, device)


class TunedEmbedder(Tuned[Singles]):
    """An embedder."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """
        Raises:
            ModelError: the base is no encoder of the kind that retrieval searches with.
        """
        self.files = resolve(recipe.model.name)
        self._embedder = Embedder(self.files, device, recipe.training.max_tokens)
        self.tokenizer, self.max_tokens = self._embedder.tokenizer, self._embedder.max_tokens
        without_dropout(self.model)
        # it reads the first token for a task of BERT's own; vectors do not come of it, so that it would not train
        self._pooler: nn.Module | None = dict(self.model.named_children()).get("pooler")
        if self._pooler is not None:
            self.model.pooler = None

    @property
    def model(self) -> Any:
        """The encoder that embeds."""
        return self._embedder.model

    def texts(self, passages: Sequence[Passage]) -> Singles:
        """Texts without titles, as the index embeds them."""
        return _Single(self._embedder, passages)

    def probes(self, sought: Sequence[Sought], passages: Sequence[Passage]) -> tuple[list[Row], torch.Tensor]:
        """Questions and passages, and their vectors."""
        read, numbers = self.texts(passages), [one.positive for one in sought]
        ids = [*(read.question(one.question) for one in sought), *(read.passage(number) for number in numbers)]
        texts = [*(one.question for one in sought), *(passages[number].text for number in numbers)]
        rows = [text_row(one, f"text {at}", {}) for at, one in enumerate(ids)]
        return rows, torch.from_numpy(self._embedder.embed(texts).vectors_ND)

    def trained(self, models: Models, batch: Batch) -> torch.Tensor:
        """Vectors."""
        return encoder_of(models).vectors(batch)

    def write(self, model: Any, folder: Path) -> None:
        """As transformers and sentence-transformers have it: the mean over tokens, of length 1."""
        model.pooler = self._pooler
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        kinds = ("Transformer", "Pooling", "Normalize")
        places = ("", "1_Pooling", "2_Normalize")
        modules = [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (kind, path) in enumerate(zip(kinds, places, strict=True))
        ]
        _write_json(folder / "modules.json", modules)
        _write_json(folder / "sentence_bert_config.json", {"max_seq_length": self.max_tokens, "do_lower_case": False})
        for place in places[1:]:
            (folder / place).mkdir(exist_ok=True)
        width = int(model.config.hidden_size)
        _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": width, POOLING: True})


class _Single:
    """Questions and passages, each by itself."""

    def __init__(self, embedder: Embedder, passages: Sequence[Passage]) -> None:
        self._embedder, self._passages = embedder, passages
        self._known: dict[int, tuple[int, ...]] = {}  # one tuple for all rows that hold the passage

    def question(self, text: str) -> tuple[int, ...]:
        return tuple(self._embedder.cut(self._embedder.ids_of([text])[0]))

    def passage(self, number: int) -> tuple[int, ...]:
        if number not in self._known:
            self._known[number] = self.question(self._passages[number].text)
        return self._known[number]


class TunedReranker(Tuned[Pairs]):
    """A cross-encoder."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """
        Raises:
            ModelError: the base cannot read pairs.
        """
        self.files = resolve(recipe.model.name)
        self._cross = CrossEncoder(self.files, device, recipe.training.max_tokens, untrained=True)
        self.tokenizer, self.max_tokens = self._cross.tokenizer, self._cross.max_tokens
        without_dropout(self.model)

    @property
    def model(self) -> Any:
        """The encoder with the layer that scores."""
        return self._cross.model

    def texts(self, passages: Sequence[Passage]) -> Pairs:
        """Passages below their titles, as the search hands them over."""
        return _Pairs(self._cross, passages)

    def probes(self, sought: Sequence[Sought], passages: Sequence[Passage]) -> tuple[list[Row], torch.Tensor]:
        """Questions beside their passages, and the scores."""
        read = self.texts(passages)
        rows = [pair_row(*read.pair(one.question, one.positive), one.id, {}) for one in sought]
        scores = self._cross.score([(one.question, passages[one.positive].titled) for one in sought])
        return rows, torch.tensor(scores)

    def trained(self, models: Models, batch: Batch) -> torch.Tensor:
        """Scores."""
        return encoder_of(models).scores(batch)

    def write(self, model: Any, folder: Path) -> None:
        """As transformers has it, with one number."""
        model.save_pretrained(folder)
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.model_max_length = self.max_tokens  # as long a pair is read where it answers
        tokenizer.save_pretrained(folder)


class _Pairs:
    """Questions beside passages."""

    def __init__(self, cross: CrossEncoder, passages: Sequence[Passage]) -> None:
        self._cross, self._passages = cross, passages

    def pair(self, question: str, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        ((ids, segments),) = self._cross.read([(question, self._passages[number].titled)])
        return tuple(ids), tuple(segments)


TUNED: Mapping[Part, Callable[[Recipe, torch.device], Tuned[Any]]] = {
    "embedder": TunedEmbedder,
    "reranker": TunedReranker,
}


def write_artifact(tuned: Tuned[Any], run: Run, recipe: Recipe, part: Part, folder: Path) -> None:
    """Write what was trained, so that it is on the disk; the model that trained stays as it is.

    Raises:
        OSError, SafetensorError: the disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model, injected = copy.deepcopy((run.model, run.injected))
    injected.merge()
    with no_progress_bars():
        tuned.write(model, folder)
    record = {
        "luthier": __version__,
        "trains": part,
        "recipe": recipe.dump(),
        "model": {"name": recipe.model.name, "fingerprint": tuned.files.fingerprint, "precision": "float32"},
        # the training cannot go on from here where an adapter was folded in, so it is not told as its checkpoint
        "training": None,
        "made_by": run.fingerprint,
        "files": {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()},
    }
    _write_json(folder / RECORD, record)
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
