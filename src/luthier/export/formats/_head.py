"""A trained head as transformers has it: a model that classifies sequences or tokens.

The head's weights are divided by the temperature that calibrates them, so that whoever takes a softmax (or sigmoids) of
its numbers has calibrated probabilities. What transformers reads of a sequence is the last token that is no padding:
where a chat ends with the token that pads as well, another token is made to pad.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

from luthier.assemble import Trained
from luthier.errors import ExportError
from luthier.evaluation.classes import is_classifier
from luthier.evaluation.said import reading_of
from luthier.examples import Message
from luthier.models.heads import SETTINGS, Head
from luthier.objectives import classify, multi_label, regress, token_classify

PROBLEMS = {
    classify.KIND: "single_label_classification",
    multi_label.KIND: "multi_label_classification",
    regress.KIND: "regression",
    token_classify.KIND: None,
}
"""What transformers calls the kinds of heads that it has; a head that reads words has no name for it there."""
WEIGHT = "score.weight"
"""The name of the head's weights there."""


def auto_class(head: Head) -> str:
    """The class of transformers that opens such a folder."""
    return f"AutoModelFor{'Token' if reads_words(head) else 'Sequence'}Classification"


def reads_words(head: Head) -> bool:
    """Whether it says something of each word."""
    return head.shape.kind == token_classify.KIND


def head_of(trained: Trained) -> Head | None:
    """The head that says something of texts; None where the model writes."""
    head = trained.injected.head
    return head if is_classifier(head) else None


def require_class(trained: Trained, head: Head) -> Any:
    """The class of transformers for this architecture and such a head.

    Raises:
        ExportError: there is none.
    """
    config = trained.loaded.model.config  # type: ignore[union-attr]
    words = reads_words(head)
    known = MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING if words else MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    found = known.get(type(config), None)
    if found is None:
        raise ExportError(
            f"{trained.name}: transformers has no {auto_class(head)} of the architecture {type(config).__name__}; "
            "`luthier serve` serves the run itself"
        )
    return found


def score_weight(head: Head) -> Tensor:
    """(outputs, width) float32: the head's weights with their temperature in them."""
    scale_O = torch.tensor(reading_of(head).scale(), dtype=torch.float32)
    return head.weight.detach().float() / scale_O[:, None]


def with_head(trained: Trained, head: Head) -> Any:
    """The merged model with its head in the place of the output layer, as transformers classifies with it.

    Raises:
        ExportError: transformers has no such class.
    """
    model: Any = trained.loaded.model
    cls = require_class(trained, head)
    config = settings(trained, head)
    with torch.device("meta"):
        made = cls(config)
    setattr(made, made.base_model_prefix, model.base_model)
    words = reads_words(head)
    made.score = torch.nn.Linear(head.weight.shape[1], head.weight.shape[0], bias=words)
    made.score.weight = torch.nn.Parameter(score_weight(head))
    if words:  # transformers has a bias there
        torch.nn.init.zeros_(made.score.bias)
    return made


def settings(trained: Trained, head: Head) -> Any:
    """The settings of the model, with what the head needs."""
    config: Any = copy.deepcopy(trained.loaded.model.config)  # type: ignore[union-attr]
    config.num_labels = head.shape.outputs
    if labels := head.shape.labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    if (problem := PROBLEMS[head.shape.kind]) is not None:
        config.problem_type = problem
    config.pad_token_id = pad_id(trained, head)
    return config


def pad_id(trained: Trained, head: Head) -> int:
    """A token that pads and ends no text.

    Raises:
        ExportError: there is none.
    """
    tokenizer = trained.loaded.tokenizer
    template, as_chat = trained.template, head.shape.reading["input"] == "chat"
    last = (template.prompt_ids((Message("user", "a"),)) if as_chat else template.text_ids("a"))[-1]
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids)
    found = next((token for token in special if token is not None and token != last), None)
    if found is None:
        raise ExportError(
            f"{trained.name}: its tokenizer has no special token that could pad but the one that ends a text"
        )
    return int(found)


def save_head(trained: Trained, head: Head, folder: Path) -> None:
    """Tokenizer, template, and `head.json`."""
    tokenizer = copy.deepcopy(trained.loaded.tokenizer)
    tokenizer.chat_template = trained.template.source or None
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(trained, head))
    tokenizer.padding_side = "right"
    tokenizer.save_pretrained(folder)
    (folder / SETTINGS).write_bytes((trained.folder / SETTINGS).read_bytes())
