"""A second look at what a search found: a cross-encoder reads query and passage together and scores the pair.

Slower than a search by orders of magnitude, since nothing can be computed before the query is there; so it sees only
the first CANDIDATES (Nogueira and Cho 2019, arXiv 1901.04085).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from luthier.config import canonical_hash
from luthier.errors import ModelError
from luthier.models.catalog import ModelFiles
from luthier.models.load import load_tokenizer, load_weights, require_supported
from luthier.rag.finder import Finder, Found

CANDIDATES = 30
BATCH_PAIRS = 16


class CrossEncoder:
    """A model with one score for a pair of texts, or two, of which the second speaks for the pair."""

    def __init__(self, files: ModelFiles, device: torch.device) -> None:
        """Look at the folder; the weights are loaded when the first pair is scored.

        Raises:
            ModelError: the model is of a kind that cannot be used so.
        """
        require_supported(files, None)
        self.files, self.device = files, device
        self.tokenizer = load_tokenizer(files)

    @property
    def fingerprint(self) -> str:
        """Changes when the score of a pair may."""
        return canonical_hash([self.files.fingerprint, CANDIDATES])

    @cached_property
    def model(self) -> Any:
        """The model, in float32.

        Raises:
            ModelError: a file was changed, a weight is missing, or it has neither one nor two scores.
        """
        self.files.verify()
        model = load_weights(self.files, torch.float32, head="SequenceClassification")
        if model.config.num_labels not in (1, 2):
            raise ModelError(
                f"{self.files.name}: retrieval.reranker has {model.config.num_labels} scores; expected a cross-encoder "
                "with one (how well passage and question go together) or two (not at all, well)"
            )
        return model.to(self.device).eval()

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """How well each passage goes with its query; a pair that is too long loses the end of the passage."""
        limit = min(int(self.model.config.max_position_embeddings), self.tokenizer.model_max_length)
        scores: list[float] = []
        for start in range(0, len(pairs), BATCH_PAIRS):
            some = pairs[start : start + BATCH_PAIRS]
            given = self.tokenizer(
                [query for query, _ in some],
                [text for _, text in some],
                truncation="longest_first",
                max_length=limit,
                padding=True,
                return_tensors="pt",
            ).to(self.device)
            logits_BS = self.model(**given).logits
            scores += (logits_BS[:, 0] if logits_BS.shape[1] == 1 else logits_BS[:, 1] - logits_BS[:, 0]).tolist()
        return scores


class Reranked:
    """A search whose first results are put into the order that a cross-encoder gives them."""

    def __init__(self, finder: Finder, texts: Sequence[str], model: CrossEncoder) -> None:
        self._finder, self._texts, self._model = finder, texts, model

    def find(self, queries: Sequence[str], count: int) -> list[list[Found]]:
        """At most `count` of the candidates, by the score of the pair; of equal ones as the search had them."""
        ranked = []
        for query, candidates in zip(queries, self._finder.find(queries, max(count, CANDIDATES)), strict=True):
            scores = self._model.score([(query, self._texts[at]) for at, _ in candidates])
            pairs = zip(candidates, scores, strict=True)
            ranked.append(sorted(((at, score) for (at, _), score in pairs), key=lambda found: -found[1])[:count])
        return ranked
