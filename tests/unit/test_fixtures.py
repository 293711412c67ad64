"""The shared fixtures are what their docstrings say."""

from pathlib import Path
from typing import Any

import pytest

TEXTS = ["plain", "naïve — 東京 🙂", "  two  spaces\n\ttabs", "1234567890", "\x00\x07"]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    """The tiny tokenizer, read back from its folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.mark.parametrize("text", TEXTS)
def test_tiny_tokenizer_holds_any_text(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_tiny_tokenizer_has_the_traps_of_the_default_model(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 2 and ids.count(tokenizer.eos_token_id) == 1


def test_tiny_model_is_small_and_whole(tiny_model_folder: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert model.config.vocab_size == len(tokenizer)
    assert sum(p.numel() for p in model.parameters()) < 200_000
