"""Tokens that a model did not have: added to its tokenizer, with rows of embedding and head that they begin as.

A new token begins as the mean of the pieces that its text was made of before, in the embedding and in the head: the
model goes on reading what it read there, and no new token is likelier than its pieces were. Rows at random would be
either louder than all others or read as nothing; the mean of all rows says nothing of the text.

New tokens are control tokens, as all added tokens are here (`data/control_tokens.py`): a template and an assistant's
replies may write them, and the text of a user never becomes one.
"""

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from torch import nn

from luthier.errors import ModelError
from luthier.models.load import LoadedModel

Pieces = list[list[int]]
"""For each new token the ids that its text was made of."""


def with_new_tokens(loaded: LoadedModel, texts: Sequence[str]) -> LoadedModel:
    """The model, which knows these tokens from now on; the last ids of its tokenizer are theirs, in this order.

    A model without weights gets a larger tokenizer alone.

    Raises:
        ModelError: a text is a token already or cannot be one, or the model's tables cannot grow.
    """
    if texts:
        pieces = add_to_tokenizer(loaded.tokenizer, texts)
        if loaded.device.type != "meta":
            _grow(loaded.model, len(loaded.tokenizer) - len(texts), pieces)
    return loaded


def add_to_tokenizer(tokenizer: Any, texts: Sequence[str]) -> Pieces:
    """Add tokens; what each was made of before.

    Raises:
        ModelError: a text is a token already or cannot be one.
    """
    pieces = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    known = tokenizer.get_vocab()
    for number, (text, made_of) in enumerate(zip(texts, pieces, strict=True)):
        if len(text) < 2 or text != text.strip():
            raise ModelError(f"adapter.new_tokens: {text!r} must be two characters or more, without space at its ends")
        if text in known or len(made_of) == 1:
            raise ModelError(f"adapter.new_tokens: {text!r} is a token of this model already; leave it out")
        if text in texts[:number]:
            raise ModelError(f"adapter.new_tokens: {text!r} stands there twice")
    first = len(tokenizer)
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts])
    found = [tokenizer.convert_tokens_to_ids(text) for text in texts]
    if found != list(range(first, first + len(texts))):
        raise ModelError(
            f"adapter.new_tokens: the tokenizer gave {list(texts)} the ids {found}, expected {first} and on"
        )
    return pieces


def tables_of(model: Any) -> tuple[nn.Embedding, nn.Linear, bool]:
    """Embedding, head, and whether both are one matrix.

    Raises:
        ModelError: they are not plain ones; rows of them cannot be told apart from what else they compute.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
        kinds = f"{type(embedding).__name__} and {type(head).__name__}"
        raise ModelError(
            f"adapter.new_tokens: {type(model).__name__} has an embedding and a head of the kinds {kinds}, which "
            "cannot get rows of their own; a plain embedding and a plain head can (model.quantize = 'gguf' holds both "
            "quantized: take 'nf4', 'int8' or 'none')"
        )
    return embedding, head, head.weight is embedding.weight


@torch.no_grad()
def _grow(model: Any, first: int, pieces: Pieces) -> None:
    embedding, head, tied = tables_of(model)
    starts = [
        torch.stack([table.weight[made_of].float().mean(0) for made_of in pieces])
        for table in ((embedding,) if tied else (embedding, head))
    ]
    needed = first + len(pieces)
    if needed > embedding.num_embeddings:  # many models have rows to spare
        with torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(needed, mean_resizing=False)
    for table, start in zip(tables_of(model)[: len(starts)], starts, strict=True):
        assert isinstance(table, nn.Embedding | nn.Linear)
        table.weight[first:needed] = start.to(table.weight.dtype)
