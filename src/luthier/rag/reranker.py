"""A second look at what a search found: a cross-encoder reads query and passage together and scores the pair.

Slower than a search by orders of magnitude, since nothing can be computed before the query is there; so it sees only
the first CANDIDATES (Nogueira and Cho 2019, arXiv 1901.04085).
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import torch

from luthier.config import canonical_hash
from luthier.errors import ModelError
from luthier.models.catalog import ModelFiles
from luthier.models.encoder import padded
from luthier.models.load import load_weights, require_supported
from luthier.rag.embedder import padding_tokenizer, require_encoder
from luthier.rag.finder import Finder, Found

CANDIDATES = 30
BATCH_PAIRS = 16
UNTRAINED = (
    "classifier.",
    "score.",
    "pre_classifier.",
    *(f"{kind}.pooler." for kind in ("bert", "roberta", "electra")),
)
"""Beginnings of names of weights that score, and that an encoder which never scored lacks."""
Pair: TypeAlias = tuple[list[int], list[int]]
"""Tokens, and of which text each is (0, 1)."""


class CrossEncoder:
    """A model with one score for a pair of texts, or two, of which the second speaks for the pair."""

    def __init__(
        self, files: ModelFiles, device: torch.device, most_tokens: int | None = None, untrained: bool = False
    ) -> None:
        """Look at the folder; the weights are loaded when the first pair is scored.

        Args:
            files: of the model.
            device: where it computes.
            most_tokens: of a pair; absent: as many as the model takes.
            untrained: whether the layer that scores may be missing, since it will be trained; it has one score.

        Raises:
            ModelError: the model is of a kind that cannot be used so.
        """
        require_supported(files, None)
        if untrained:  # a decoder would be given a fresh layer, too, over pairs that nothing tells apart
            require_encoder(files.folder, files.name)
        self.files, self.device = files, device
        self.tokenizer = padding_tokenizer(files)
        self._most_tokens, self._untrained = most_tokens, untrained

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
        spare, labels = (UNTRAINED, 1) if self._untrained else ((), None)
        model = load_weights(self.files, torch.float32, head="SequenceClassification", spare=spare, labels=labels)
        if model.config.num_labels not in (1, 2):
            raise ModelError(
                f"{self.files.name}: retrieval.reranker has {model.config.num_labels} scores; expected a cross-encoder "
                "with one (how well passage and question go together) or two (not at all, well)"
            )
        return model.to(self.device).eval()

    @property
    def max_tokens(self) -> int:
        """Of a pair; a longer one loses the end of its longer text."""
        longest = min(int(self.model.config.max_position_embeddings), int(self.tokenizer.model_max_length))
        return longest if self._most_tokens is None else min(longest, self._most_tokens)

    def read(self, pairs: Sequence[tuple[str, str]], cut: bool = True) -> list[Pair]:
        """The tokens of each pair, and of which text each is; of none where the model does not ask. `cut`: to what the
        model reads."""
        if not pairs:
            return []
        given = self.tokenizer(
            [query for query, _ in pairs],
            [text for _, text in pairs],
            truncation="longest_first" if cut else False,
            max_length=self.max_tokens if cut else None,
            verbose=False,
        )
        ids: list[list[int]] = given["input_ids"]
        return list(zip(ids, given.get("token_type_ids", [[] for _ in ids]), strict=True))

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """How well each passage goes with its query; a pair that is too long loses the end of the passage."""
        return self.score_read(self.read(pairs))

    @torch.inference_mode()
    def score_read(
        self, pairs: Sequence[Pair], on_progress: Callable[[int, int], None] = lambda _d, _a: None
    ) -> list[float]:
        """The same of pairs as `read` gives them; `on_progress` is told how many are done, of how many."""
        scores: list[float] = []
        for start in range(0, len(pairs), BATCH_PAIRS):
            some = pairs[start : start + BATCH_PAIRS]
            ids_BT, mask_BT = padded([ids for ids, _ in some], self.tokenizer.pad_token_id, self.device)
            segments = {"token_type_ids": padded([s for _, s in some], 0, self.device)[0]} if some[0][1] else {}
            logits_BS = self.model(input_ids=ids_BT, attention_mask=mask_BT, **segments).logits
            scores += (logits_BS[:, 0] if logits_BS.shape[1] == 1 else logits_BS[:, 1] - logits_BS[:, 0]).tolist()
            on_progress(len(scores), len(pairs))
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
