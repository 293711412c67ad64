"""Parts of a run that are wrong on purpose: wrappers around the real template, scorer and batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.adapters.base import Injected
from luthier.data.templates import Template
from luthier.examples import Conversation, Document, Message, Row
from luthier.models.forest import Batch, TokenScores
from luthier.models.scorer import Scorer, chosen_scores, forest_mode
from luthier.objectives.base import Loss, Models
from luthier.objectives.sft import SFT
from luthier.preflight.base import BatchBuilder, Subject

RowChange = Callable[[Row], Row]
ExampleChange = Callable[[Any], Any]
PromptChange = Callable[[list[int]], list[int]]
MessagesChange = Callable[[Sequence[Message]], Sequence[Message]]


@dataclass
class WrongTemplate:
    """The real template with a fault in the rows it makes, in the prompts it serves, or in what it reads."""

    inner: Template
    on_row: RowChange = lambda row: row
    on_example: ExampleChange = lambda example: example
    on_prompt: PromptChange = lambda ids: ids
    on_messages: MessagesChange = lambda messages: messages
    drop_served_tools: bool = False

    @property
    def source(self) -> str:
        return self.inner.source

    @property
    def capabilities(self) -> frozenset[str]:
        return self.inner.capabilities

    @property
    def stop_ids(self) -> frozenset[int]:
        return self.inner.stop_ids

    def rows(self, example: Conversation | Document) -> tuple[Row, ...]:
        return tuple(self.on_row(row) for row in self.inner.rows(self.on_example(example)))

    def reply_row(self, conversation: Conversation, reply: tuple[Message, ...]) -> Row:
        return self.on_row(self.inner.reply_row(conversation, reply))

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        seen = self.on_messages(messages)
        return self.on_prompt(self.inner.prompt_ids(seen, () if self.drop_served_tools else tools))

    def prompt_ids_before(
        self, messages: Sequence[Message], indices: Sequence[int], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[list[int]]:
        return [self.prompt_ids(messages[:index], tools) for index in indices]


def wrong_template(subject: Subject, **changes: Any) -> Subject:
    """The subject with both its templates wrapped: the fault is in the code that renders, so it is in both."""
    wrapped = [cast(Template, WrongTemplate(t, **changes)) for t in (subject.template, subject.untruncated)]
    return replace(subject, template=wrapped[0], untruncated=wrapped[1])


def masked(row: Row, keep: Callable[[int, float], float]) -> Row:
    """The row with the loss mask `keep(position, weight)`."""
    return replace(row, loss_mask=tuple(keep(i, weight) for i, weight in enumerate(row.loss_mask)))


def first_trained(row: Row) -> int:
    """Position of the first trained token, or the length of the row."""
    return next((i for i, weight in enumerate(row.loss_mask) if weight), len(row.ids))


def last_trained(row: Row) -> int:
    """Position of the last trained token, or -1."""
    return max((i for i, weight in enumerate(row.loss_mask) if weight), default=-1)


def without(row: Row, dropped: Callable[[int], bool]) -> Row:
    """The row without the tokens at positions for which `dropped` is true."""
    kept = [i for i in range(len(row.ids)) if not dropped(i)]
    return replace(row, ids=tuple(row.ids[i] for i in kept), loss_mask=tuple(row.loss_mask[i] for i in kept))


class WrongBatches(BatchBuilder):
    """The real batches, changed."""

    def __init__(self, change: Callable[[Batch, Sequence[Row]], Batch]) -> None:
        self.change = change

    def build(self, rows: Sequence[Row]) -> Batch:
        return self.change(super().build(rows), rows)


def double_shift(batch: Batch, rows: Sequence[Row]) -> Batch:
    """Targets are the tokens after next."""
    ids = batch.forest.ids_N
    source_Q = batch.hidden_H[batch.hidden_Q]
    return replace(batch, target_Q=ids[(source_Q + 2).clamp(max=len(ids) - 1)])


def no_shift(batch: Batch, rows: Sequence[Row]) -> Batch:
    """Targets are the tokens that the model has just read."""
    return replace(batch, target_Q=batch.forest.ids_N[batch.hidden_H[batch.hidden_Q]])


def across_rows(batch: Batch, rows: Sequence[Row]) -> Batch:
    """The first token of each row is predicted from the last of the row before, as in naive packing."""
    ends, hidden = batch.forest.ends, len(batch.hidden_H)
    sources = torch.tensor([ends[0] - 1] * (len(rows) - 1))
    targets = torch.tensor([row.ids[0] for row in rows[1:]])
    extra = len(sources)
    predictions = torch.arange(extra) + len(batch.target_Q)
    return replace(
        batch,
        row_K=torch.cat([batch.row_K, torch.arange(1, len(rows))]),
        loss_mask_K=torch.cat([batch.loss_mask_K, torch.ones(extra)]),
        prediction_K=torch.cat([batch.prediction_K, predictions]),
        hidden_H=torch.cat([batch.hidden_H, sources]),
        hidden_Q=torch.cat([batch.hidden_Q, torch.arange(extra) + hidden]),
        target_Q=torch.cat([batch.target_Q, targets]),
    )


def running_positions(batch: Batch, rows: Sequence[Row]) -> Batch:
    """Positions count on through the batch instead of starting anew with each row."""
    forest = replace(batch.forest, positions_N=torch.arange(len(batch.forest.ids_N)))
    return replace(batch, forest=forest)


def wrong_weights(batch: Batch, rows: Sequence[Row]) -> Batch:
    """All weights become 1."""
    return replace(batch, loss_mask_K=torch.ones_like(batch.loss_mask_K))


class OneWayScorer(Scorer):
    """Both kinds of score come out of `token_scores`, so that a fault there is in both."""

    def token_logprobs(self, batch: Batch) -> Tensor:
        return self.token_scores(batch).logprobs_K


class LeakyScorer(OneWayScorer):
    """Packs the rows behind one another and lets plain causal attention run over all of them."""

    def token_scores(self, batch: Batch) -> TokenScores:
        ids_N, positions_N = batch.forest.ids_N, batch.forest.positions_N
        # one long mask of ones keeps transformers from finding the rows by their positions
        mask = torch.ones(1, 1, len(ids_N), len(ids_N), dtype=torch.bool).tril()
        out = self.model(ids_N[None], position_ids=positions_N[None], attention_mask=mask, use_cache=False)
        return chosen_scores(out.logits[0][batch.hidden_H], batch)


class ChangedScorer:
    """A scorer whose log-probabilities are changed afterwards."""

    def __init__(self, inner: Any, change: Callable[[Tensor], Tensor]) -> None:
        self.inner, self.change = inner, change

    def token_logprobs(self, batch: Batch) -> Tensor:
        return self.token_scores(batch).logprobs_K

    def token_scores(self, batch: Batch) -> TokenScores:
        scores: TokenScores = self.inner.token_scores(batch)
        return scores._replace(logprobs_K=self.change(scores.logprobs_K))

    def logits(self, batch: Batch) -> Tensor:
        return self.change(self.inner.logits(batch))


class WarmScorer(OneWayScorer):
    """Divides the logits by a temperature of 0.7, as a sampler does."""

    def token_scores(self, batch: Batch) -> TokenScores:
        return chosen_scores(self.logits(batch) / 0.7, batch)


class LastLayerScorer(OneWayScorer):
    """Runs the first layer without a graph, as reentrant checkpointing over frozen embeddings did."""

    def token_scores(self, batch: Batch) -> TokenScores:
        model: Any = self.model
        with detached_after_first_layer(model), forest_mode(model):
            return super().token_scores(batch)


@contextmanager
def detached_after_first_layer(model: Any) -> Iterator[None]:
    """No gradient passes from the second layer to the first while open."""

    def cut(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(a.detach() if isinstance(a, Tensor) else a for a in args), kwargs

    hook = model.model.layers[1].register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def add_dropout(model: Any, always: bool = False) -> None:
    """Dropout behind the embeddings; `always` also when the model is evaluated."""

    def drop(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return F.dropout(output, 0.1, training=always or model.training)

    model.get_input_embeddings().register_forward_hook(drop)


class _TenthOfTheGradient(torch.autograd.Function):
    """Passes values on as they are, and a tenth of their gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 0.1 * grads[0]


def weaken_backward(model: Any) -> None:
    """The attention over forests gets a backward pass that does not fit its forward pass."""

    def weaken(_module: nn.Module, _args: Any, kwargs: Mapping[str, Any], output: tuple[Tensor, Any]) -> Any:
        if kwargs.get("forest") is None:
            return output
        return (_TenthOfTheGradient.apply(output[0]), *output[1:])  # type: ignore[no-untyped-call]

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(weaken, with_kwargs=True)


def flatten_decoding(model: Any) -> None:
    """The attention of generation scales its scores otherwise than the one of training."""

    def scale(factor: float) -> Callable[..., None]:
        def hook(module: Any, _args: Any, kwargs: Mapping[str, Any], *_output: Any) -> None:
            if kwargs.get("slots") is not None:
                module.scaling *= factor

        return hook

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(scale(0.3), with_kwargs=True)
        layer.self_attn.register_forward_hook(scale(1 / 0.3), with_kwargs=True)


class MeanOfRowsSFT(SFT):
    """Averages over the rows of a micro-batch where it should sum."""

    def loss(self, models: Models, batch: Batch) -> Loss:
        loss = super().loss(models, batch)
        return replace(loss, total=loss.total / batch.row_count)


class UnweightedSFT(SFT):
    """Adds the losses up without their weights, and divides by the weights all the same."""

    def loss(self, models: Models, batch: Batch) -> Loss:
        return Loss(-models.policy.token_logprobs(batch).sum())


class Handle(Injected):
    """A handle of an adapter that lists other tensors than it has."""

    def __init__(self, inner: Injected, listed: Mapping[str, nn.Parameter]) -> None:
        self.inner, self.listed = inner, listed

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        return self.listed

    def disabled(self) -> AbstractContextManager[None]:
        return self.inner.disabled()

    def merge(self) -> None:
        self.inner.merge()

    def save(self, folder: Path, base_name: str) -> None:
        self.inner.save(folder, base_name)

    def load(self, folder: Path) -> None:
        self.inner.load(folder)
