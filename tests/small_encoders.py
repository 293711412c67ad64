"""Small BERT-like models in a hub's layout, made in a moment: an encoder, and a cross-encoder that a test trains."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *"abcdefghijklmnopqrstuvwxyz0123456789.,?!",
    "bridge",
    "river",
    "city",
]
POSITIONS = 64


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Letters, and a few whole words; [CLS] before and [SEP] after a text, as BERT has them."""
    pieces = [*VOCABULARY, *(f"##{piece}" for piece in VOCABULARY[4:])]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=POSITIONS, **names)


def _config(**more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=2 * len(VOCABULARY) - 4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=POSITIONS,
        initializer_range=0.3,
        **more,
    )


def write_encoder(folder: Path, seed: int = 0, **more: Any) -> Path:
    """An encoder with random weights; `more` goes into its configuration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(_config(**more)).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def write_cross_encoder(folder: Path, pairs: list[tuple[str, str, float]], labels: int = 1, steps: int = 60) -> Path:
    """A cross-encoder trained on pairs of texts with 1 where they go together, 0 where they do not."""
    tokenizer = word_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(_config(num_labels=labels, hidden_dropout_prob=0.0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        given = tokenizer([a for a, _, _ in pairs], [b for _, b, _ in pairs], padding=True, return_tensors="pt")
        wanted = torch.tensor([score for _, _, score in pairs])
        for _ in range(steps):
            logits = model(**given).logits
            score = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(score, wanted).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
