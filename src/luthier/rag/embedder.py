"""Texts to vectors, by a BERT-like encoder: the mean of its last hidden states over the tokens, of length 1.

    e(t) = m / |m|,   m = mean of h_i over the tokens i of t          (Reimers and Gurevych 2019, arXiv 1908.10084)

So the product of two vectors is the cosine of their angle. A text that is longer than the encoder reads is cut there,
and counted. Left out: pooling by the first token, layers behind the mean, and prefixes such as `query: `; an encoder
whose folder asks for one of these is refused, because it would answer, only worse. One that asks for prefixes in its
description alone cannot be told from others.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from luthier.config import canonical_hash
from luthier.errors import ModelError
from luthier.models.catalog import ModelFiles
from luthier.models.encoder import padded, pooled
from luthier.models.load import load_tokenizer, load_weights, require_supported

Vectors: TypeAlias = npt.NDArray[np.float32]
"""(N, D), a vector of length 1 for each text."""

BATCH_TOKENS = 8192
"""Most tokens computed at once, padding included."""
UNBOUNDED = 1 << 20
"""What a tokenizer that knows no limit says is more than this."""
POOLING = "pooling_mode_mean_tokens"
"""What the settings of that library call the mean over tokens."""
MODULES = ("Transformer", "Pooling", "Normalize")
"""Parts that a folder of the library sentence-transformers may name: what is computed here."""


@dataclass(frozen=True)
class Embedded:
    """Vectors of some texts."""

    vectors_ND: Vectors
    cut: int
    """Texts that were longer than the encoder reads."""


class Embedder:
    """An encoder; its weights are loaded when the first text is embedded."""

    def __init__(self, files: ModelFiles, device: torch.device, most_tokens: int | None = None) -> None:
        """Look at the folder.

        Args:
            files: of the encoder.
            device: where it computes.
            most_tokens: of a text; absent: as many as the encoder was trained for.

        Raises:
            ModelError: the model is of a kind that cannot be used so.
        """
        require_supported(files, None)
        require_encoder(files.folder, files.name)
        _require_mean(files.folder, files.name)
        self.files, self.device = files, device
        self.tokenizer = padding_tokenizer(files)
        longest = _max_tokens(files.folder, self.tokenizer)
        self.max_tokens = longest if most_tokens is None else min(longest, most_tokens)

    @property
    def fingerprint(self) -> str:
        """Changes when the vectors of a text may."""
        return canonical_hash([self.files.fingerprint, self.max_tokens, "mean"])

    @cached_property
    def model(self) -> Any:
        """The encoder, in float32: bfloat16 would be faster, and would change which of two near passages is first.

        Raises:
            ModelError: a file was changed, or a weight is missing.
        """
        self.files.verify()
        # what makes one vector of a BERT's first token is not used, and some folders leave it out
        model = load_weights(self.files, torch.float32, head="", spare=("pooler.",))
        return model.to(self.device).eval()

    @property
    def dimension(self) -> int:
        """D, the numbers of a vector."""
        return int(self.model.config.hidden_size)

    def embed(
        self, texts: Sequence[str], on_progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> Embedded:
        """The vectors of `texts`, in their order, computed with others of about their length.

        Args:
            texts: any, an empty one too.
            on_progress: told how many of them are done, and how many there are.
        """
        ids = self.ids_of(texts)
        vectors_ND = self.embed_ids([self.cut(one) for one in ids], on_progress)
        return Embedded(vectors_ND, sum(len(one) > self.max_tokens for one in ids))

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, with those that begin and end one; not cut."""
        return self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []

    def marked(self, ids: Sequence[int]) -> list[int]:
        """Tokens of a text with those that begin and end one ([CLS] and [SEP])."""
        return [*self._marks[0], *ids, *self._marks[1]]

    @cached_property
    def _marks(self) -> tuple[list[int], list[int]]:
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        at = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
        return whole[:at], whole[at + len(bare) :]

    def embed_ids(
        self, ids: Sequence[list[int]], on_progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> Vectors:
        """The vectors of texts whose tokens are known, in their order.

        Args:
            ids: as `ids_of` gives them, at most `max_tokens` each.
            on_progress: as for `embed`.
        """
        vectors_ND = np.zeros((len(ids), self.dimension), dtype=np.float32)
        done = 0
        for places in _batches([len(one) for one in ids]):
            vectors_ND[places] = self._encode([ids[at] for at in places])
            done += len(places)
            on_progress(done, len(ids))
        return vectors_ND

    def cut(self, ids: list[int]) -> list[int]:
        """At most `max_tokens`, the last of which is the one that ends a text ([SEP])."""
        return ids if len(ids) <= self.max_tokens else [*ids[: self.max_tokens - 1], ids[-1]]

    @torch.inference_mode()
    def _encode(self, ids: list[list[int]]) -> Vectors:
        ids_BT, mask_BT = padded(ids, self.tokenizer.pad_token_id, self.device)
        hidden_BTD = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        return pooled(hidden_BTD, mask_BT).cpu().numpy()


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places, the longest first, so that memory runs out at once or never; a batch is at most BATCH_TOKENS, padded."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch


def _max_tokens(folder: Path, tokenizer: Any) -> int:
    """The length that the encoder was trained for, where its folder says; else the longest that it can take."""
    path = folder / "sentence_bert_config.json"
    named = _json(path).get("max_seq_length") if path.is_file() else None
    positions = _json(folder / "config.json").get("max_position_embeddings")
    limits = [named, positions, tokenizer.model_max_length]
    return min(int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < UNBOUNDED)


def padding_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer of an encoder.

    Raises:
        ModelError: it cannot fill up the shorter ones of texts that are computed together.
    """
    tokenizer = load_tokenizer(files)
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{files.name}: its tokenizer has no padding token, so this is no encoder such as BERT")
    return tokenizer


def require_encoder(folder: Path, name: str) -> None:
    """Check that the model is not one that writes text: its tokens see only those before them, and a mean over them
    is no vector that it was trained to give.

    Raises:
        ModelError: it is.
    """
    kinds = _json(folder / "config.json").get("architectures") or []
    if any(str(kind).endswith("ForCausalLM") for kind in kinds):
        raise ModelError(f"{name}: this model writes text and is no encoder; use one such as all-minilm-l6-v2")


def _require_mean(folder: Path, name: str) -> None:
    """Check that the folder asks for the mean over tokens of a text as it stands, and for nothing more.

    Raises:
        ModelError: it does not, or a file of it is damaged.
    """
    parts = folder / "modules.json"
    modules = _read(parts) if parts.is_file() else []
    if not isinstance(modules, list) or not all(isinstance(part, dict) for part in modules):
        raise ModelError(f"{parts}: expected a JSON list of objects, the parts of the encoder")
    kinds = [str(part.get("type", "")).rpartition(".")[2] for part in modules]
    if other := [kind for kind in kinds if kind not in MODULES]:
        raise ModelError(
            f"{name}: {parts} names a part {other[0]!r}, and only {', '.join(MODULES)} are computed here; use an "
            "encoder without it, such as all-minilm-l6-v2"
        )
    paths = [part.get("path") for part, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    pooling = folder / str(paths[0] if paths else "1_Pooling") / "config.json"
    asked = _json(pooling) if pooling.is_file() else {}
    if not asked.get(POOLING, True) or asked.get("pooling_mode", "mean") != "mean":  # the second name is newer
        raise ModelError(
            f"{name}: {pooling} asks for another pooling than the mean over tokens, which is the only one here; "
            "use an encoder that was trained with mean pooling, such as all-minilm-l6-v2"
        )
    prompts = folder / "config_sentence_transformers.json"
    named = _json(prompts).get("prompts") if prompts.is_file() else None
    if isinstance(named, dict) and any(named.values()):
        raise ModelError(
            f"{name}: {prompts} asks for prefixes of texts ({', '.join(sorted(named))}), which are not put there; "
            "use an encoder without one, such as all-minilm-l6-v2"
        )


def _json(path: Path) -> dict[str, Any]:
    values = _read(path)
    if not isinstance(values, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
