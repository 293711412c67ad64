"""Token log-probabilities of a batch, computed only where a token is trained on.

Prompts cost no vocabulary projection: the model is asked for logits at the positions that predict a trained token
(`logits_to_keep` takes an index tensor), and a position shared by several rows is projected once. A head reads the
hidden states that come before that projection, so that both come out of one pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models import attention
from luthier.models.decode import computed_in
from luthier.models.forest import Batch, HeadValues, TokenScores
from luthier.models.heads import Head
from luthier.models.kernels.decoder import has_plain_head
from luthier.models.kernels.head import Moved, Weight, head_logprobs, head_scores
from luthier.models.quantize.base import QuantizedLinear
from luthier.models.token_rows import HeadWithRows
from luthier.models.virtual import virtual_ids


class Scorer:
    """Scores batches under one model, in whatever state its adapter is.

    `autocast` is the type that matrix products are computed in when weights are held in float32 (full fine-tuning;
    where only some are, the model says it itself). It is opened for each forward pass alone, since a longer one caches
    copies of weights that move. The head computes outside of it. `temperature` divides all logits: what was sampled at
    it is scored at it.
    """

    def __init__(
        self,
        model: Any,
        autocast: torch.dtype | None = None,
        head: Head | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.model, self.autocast, self.head = model, autocast or computed_in(model), head
        self.temperature = temperature

    def at(self, temperature: float) -> "Scorer":
        """The same model and head, scored at another temperature."""
        return Scorer(self.model, self.autocast, self.head, temperature)

    def token_logprobs(self, batch: Batch) -> Tensor:
        """(K,) log-probability of each trained-on token, in the order of `batch.row_K`; float32 at least."""
        if not len(batch.hidden_H):
            return torch.zeros(0, device=batch.row_K.device)
        batch = self._behind(batch)
        if has_plain_head(self.model):
            return head_logprobs(*self._plain(self._hidden(batch), batch))[batch.prediction_K]
        return chosen_logprobs(self._logits(batch), batch)

    def token_scores(self, batch: Batch) -> TokenScores:
        """The log-probability of each trained-on token, and whether it is the likeliest."""
        if not len(batch.hidden_H):
            none = torch.zeros(0, device=batch.row_K.device)
            return TokenScores(none, none.bool())
        batch = self._behind(batch)
        if has_plain_head(self.model):
            return TokenScores(
                *(values_Q[batch.prediction_K] for values_Q in head_scores(*self._plain(self._hidden(batch), batch)))
            )
        return chosen_scores(self._logits(batch), batch)

    def logits(self, batch: Batch) -> Tensor:
        """(H, vocabulary) logits at the positions `batch.hidden_H`."""
        return self._logits(self._behind(batch))

    def head_values(self, batch: Batch) -> HeadValues:
        """What the head reads at the end of each row and before each trained-on token.

        Raises:
            ValueError: this scorer has no head.
        """
        batch = self._behind(batch)
        return self._read(self._hidden(batch), batch)

    def logprobs_and_values(self, batch: Batch) -> tuple[Tensor, HeadValues]:
        """`token_logprobs` and `head_values` from one pass of the model.

        Raises:
            ValueError: this scorer has no head.
        """
        if not len(batch.hidden_H):
            return torch.zeros(0, device=batch.row_K.device), self.head_values(batch)
        batch = self._behind(batch)
        if has_plain_head(self.model):
            hidden_NE = self._hidden(batch)
            return head_logprobs(*self._plain(hidden_NE, batch))[batch.prediction_K], self._read(hidden_NE, batch)
        seen: list[Tensor] = []
        hook = self.model.base_model.register_forward_hook(lambda _m, _a, out: seen.append(out.last_hidden_state[0]))
        try:
            logits_HV = self._logits(batch)
        finally:
            hook.remove()
        (hidden_NE,) = seen
        return chosen_logprobs(logits_HV, batch), self._read(hidden_NE, batch)

    def _behind(self, batch: Batch) -> Batch:
        """The batch behind the model's virtual tokens, if it has some."""
        return batch.behind(ids) if (ids := virtual_ids(self.model)) else batch

    def _hidden(self, batch: Batch) -> Tensor:
        """(N, width) what the vocabulary's projection, and the head, read."""
        hidden_NE: Tensor = self._run(self.model.base_model, batch).last_hidden_state[0]
        return hidden_NE

    def _read(self, hidden_NE: Tensor, batch: Batch) -> HeadValues:
        """The head's numbers; a position that predicts several tokens is read once."""
        if self.head is None:
            raise ValueError("this scorer has no head: the objective asks for none, or it is a reference's")
        before_HO = self.head(hidden_NE[batch.hidden_H])
        return HeadValues(self.head(hidden_NE[batch.last_R]), before_HO[batch.hidden_Q[batch.prediction_K]])

    def _plain(self, hidden_NE: Tensor, batch: Batch) -> tuple[Tensor, Weight, Tensor, Tensor, Moved | None]:
        """What the scores of a plain vocabulary projection are made of."""
        hidden_HE = hidden_NE[batch.hidden_H].to(self.autocast or hidden_NE.dtype)
        if self.temperature != 1:  # a plain projection has no bias, so this divides every logit
            hidden_HE = hidden_HE / self.temperature
        head = self.model.get_output_embeddings()
        weight = head if isinstance(head, QuantizedLinear) else head.weight
        moved = head.moved() if isinstance(head, HeadWithRows) else None
        return hidden_HE, weight, batch.hidden_Q, batch.target_Q, moved

    def _logits(self, batch: Batch) -> Tensor:
        logits: Tensor = self._run(self.model, batch, logits_to_keep=batch.hidden_H).logits[0]
        return logits if self.temperature == 1 else logits / self.temperature

    def _run(self, module: Any, batch: Batch, **options: Any) -> Any:
        """What the model, or the model without its head, returns for the batch."""
        forest = batch.forest
        device, config = forest.ids_N.device.type, self.model.config.get_text_config()
        levels = attention.levels_for(config, forest, self.autocast or self.model.dtype)
        with forest_mode(self.model), torch.autocast(device, self.autocast, enabled=self.autocast is not None):
            return module(
                input_ids=forest.ids_N[None],
                position_ids=forest.positions_N[None],
                forest=forest,
                levels=levels,
                use_cache=False,
                **options,
            )


class Held:
    """A scorer while `state` is open, such as the policy as it was before training, and without dropout, also amid a
    step."""

    def __init__(self, scorer: Scorer, state: Callable[[], AbstractContextManager[None]]) -> None:
        self._scorer, self._state = scorer, state

    @contextmanager
    def _open(self) -> Iterator[None]:
        with in_mode(self._scorer.model, training=False), self._state():
            yield

    def token_logprobs(self, batch: Batch) -> Tensor:
        """As of the scorer."""
        with self._open():
            return self._scorer.token_logprobs(batch)

    def token_scores(self, batch: Batch) -> TokenScores:
        """As of the scorer."""
        with self._open():
            return self._scorer.token_scores(batch)

    def logits(self, batch: Batch) -> Tensor:
        """As of the scorer."""
        with self._open():
            return self._scorer.logits(batch)

    def at(self, temperature: float) -> "Held":
        """The same at another temperature."""
        return Held(self._scorer.at(temperature), self._state)


def chosen_scores(logits_HV: Tensor, batch: Batch) -> TokenScores:
    """The scores of each trained-on token from the logits at `batch.hidden_H`."""
    right_Q = logits_HV.detach().argmax(-1)[batch.hidden_Q] == batch.target_Q
    return TokenScores(chosen_logprobs(logits_HV, batch), right_Q[batch.prediction_K])


def chosen_logprobs(logits_HV: Tensor, batch: Batch) -> Tensor:
    """Those of `chosen_scores` alone, without a pass over all logits for the likeliest."""
    # bfloat16 is widened: a softmax over a large vocabulary needs the precision
    logits_HV = logits_HV.to(torch.promote_types(logits_HV.dtype, torch.float32))
    if len(batch.hidden_H) != len(batch.target_Q):  # one position predicts several next tokens
        logits_HV = logits_HV[batch.hidden_Q]
    logprobs_Q = -F.cross_entropy(logits_HV, batch.target_Q, reduction="none")
    return logprobs_Q[batch.prediction_K]


def forest_mode(model: Any) -> AbstractContextManager[None]:
    """Let the model attend over forests while it is open; generation and others see its own attention again.

    The training loop holds it open over the backward pass too, where activation checkpointing calls layers again.
    """
    return attention.attending(model, attention.NAME)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """A step's mode while open, or evaluation's (no dropout); afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _rope_types(config: Mapping[str, Any]) -> set[Any]:
    """Kinds of rotary positions, over all kinds of layer."""
    rope = config.get("rope_parameters") or {}
    by_layer = [value for value in rope.values() if isinstance(value, Mapping)]
    return {values.get("rope_type") for values in (rope, *by_layer)}


_UNSUPPORTED: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "soft-capped attention": lambda config: config.get("attn_logit_softcapping") is not None,
    "dropout in its attention": lambda config: any(config.get(k) for k in ("attention_dropout", "attn_pdrop")),
    # both change a row's frequencies with the longest row beside it
    "rotary positions that depend on the length of the batch (dynamic, longrope)": lambda config: bool(
        _rope_types(config) & {"dynamic", "longrope"}
    ),
}


def require_forest(model: Any) -> None:
    """Check that the model's layers can attend over a forest.

    Raises:
        ModelError: the model keeps a state along the sequence (SSM, linear attention), its attention does more than
            attend (soft-capping, sinks, dropout), or its positions depend on the longest row of a batch; such models
            are not supported yet.
    """
    config = model.config.get_text_config().to_dict()
    unsupported = [what for what, is_so in _UNSUPPORTED.items() if is_so(config)]
    if any(name.endswith("sinks") for name, _ in model.named_parameters()):
        unsupported.append("attention sinks")
    if unsupported:
        raise ModelError(
            f"{type(model).__name__} uses {' and '.join(unsupported)}, which forests do not compute. Choose a model "
            "without it"
        )
    kinds = set(config.get("layer_types") or [])
    odd = kinds - {"full_attention", "sliding_attention"}
    if odd or not model._supports_attention_backend:
        raise ModelError(
            f"{type(model).__name__} has layers that cannot attend over a forest "
            f"({', '.join(sorted(odd)) or 'attention of its own'}). Luthier trains decoders whose layers are plain "
            "attention (the Llama, Qwen, Gemma, Mistral, SmolLM families, among others)."
        )
