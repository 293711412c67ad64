"""A trained head as transformers has it: a model that classifies sequences, and a tokenizer that ends each text.

The head's weights are divided by the temperature that calibrates them, so that whoever takes a softmax (or sigmoids) of
its numbers has calibrated probabilities. What transformers reads is the last token that is no padding: where a text
ends with the token that pads as well, another token is made to pad.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import Sequence, TemplateProcessing
from torch import Tensor
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from luthier.assemble import Trained
from luthier.errors import ExportError
from luthier.evaluation import classes
from luthier.models.heads import SETTINGS, Head

PROBLEMS = {"classify": "single_label_classification"}
"""What transformers calls the kinds of heads that it has."""
WEIGHT = "score.weight"
"""The name of the head's weights there."""


def auto_class(head: Head) -> str:
    """The class of transformers that opens such a folder."""
    return "AutoModelForSequenceClassification"


def head_of(trained: Trained) -> Head | None:
    """The head that says something of texts; None where the model writes."""
    head = trained.injected.head
    return head if classes.is_classifier(head) else None


def require_class(trained: Trained) -> Any:
    """The class of transformers for this architecture and a head.

    Raises:
        ExportError: there is none.
    """
    config = trained.loaded.model.config  # type: ignore[union-attr]
    found = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if found is None:
        raise ExportError(
            f"{trained.name}: transformers has no model for sequence classification of the architecture "
            f"{type(config).__name__}; `luthier serve` serves the run itself"
        )
    return found


def score_weight(head: Head) -> Tensor:
    """(outputs, width) float32: the head's weights with their temperature in them."""
    temperature = torch.tensor(classes.temperatures(head), dtype=torch.float32)
    return head.weight.detach().float() / temperature[:, None]


def with_head(trained: Trained, head: Head) -> Any:
    """The merged model with its head in the place of the output layer, as transformers classifies with it.

    Raises:
        ExportError: transformers has no such class.
    """
    model: Any = trained.loaded.model
    cls = require_class(trained)
    config = settings(trained, head)
    with torch.device("meta"):
        made = cls(config)
    setattr(made, made.base_model_prefix, model.base_model)
    made.score = torch.nn.Linear(head.weight.shape[1], head.weight.shape[0], bias=False)
    made.score.weight = torch.nn.Parameter(score_weight(head))
    return made


def settings(trained: Trained, head: Head) -> Any:
    """The settings of the model, with what the head needs."""
    config: Any = copy.deepcopy(trained.loaded.model.config)  # type: ignore[union-attr]
    config.num_labels = head.shape.outputs
    if labels := head.shape.labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    config.problem_type = PROBLEMS[head.shape.kind]
    config.pad_token_id = pad_id(trained, head)
    return config


def pad_id(trained: Trained, head: Head) -> int:
    """A token that pads and ends no text.

    Raises:
        ExportError: there is none.
    """
    tokenizer = trained.loaded.tokenizer
    last = classes.Classifier(trained.loaded, trained.template, head).text("a").ids[-1]
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids)
    found = next((token for token in special if token is not None and token != last), None)
    if found is None:
        raise ExportError(
            f"{trained.name}: its tokenizer has no special token that could pad but the one that ends a text"
        )
    return int(found)


def save_head(trained: Trained, head: Head, folder: Path) -> None:
    """The tokenizer as texts are read, the template, and `head.json`."""
    tokenizer = copy.deepcopy(trained.loaded.tokenizer)
    tokenizer.chat_template = trained.template.source or None
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id(trained, head))
    tokenizer.padding_side = "right"
    last = classes.Classifier(trained.loaded, trained.template, head).text("a").ids[-1]
    if head.shape.reading["input"] == "text" and tokenizer("a")["input_ids"][-1] != last:
        end = tokenizer.convert_ids_to_tokens(last)
        own, ended = (
            tokenizer.backend_tokenizer.post_processor,
            TemplateProcessing(f"$A {end}", special_tokens=[(end, last)]),
        )
        tokenizer.backend_tokenizer.post_processor = ended if own is None else Sequence([own, ended])
    tokenizer.save_pretrained(folder)
    (folder / SETTINGS).write_bytes((trained.folder / SETTINGS).read_bytes())
