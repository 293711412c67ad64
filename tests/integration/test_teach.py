"""The teaching script runs as its docstring says, and what it teaches is true."""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

CITIES = {"Oslo": "Norway", "Rome": "Italy", "Lima": "Peru", "Cairo": "Egypt"}


def chat(*contents: str) -> dict[str, Any]:
    """A chat whose turns alternate between user and assistant."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]}


ROWS = [chat(f"Where is {city}?", f"In {country}.") for city, country in CITIES.items()]


@pytest.fixture(scope="module")
def teach(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("teach_sft", repository / "examples" / "teach_sft.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float64)


def test_it_learns_its_rows_and_answers_with_them(
    teach: ModuleType, tiny_model_folder: Path, write_jsonl: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl("train.jsonl", ROWS)
    argv = [str(tiny_model_folder), str(rows), "--steps", "60", "--learning-rate", "1e-2", "--rank", "8"]
    losses = teach.main(argv)
    printed = capsys.readouterr().out
    assert losses[0] > math.log(512) - 1, "a random model knows nothing of 512 tokens"
    assert losses[-1] < 0.1
    assert "assistant\n⟦In Norway.<|im_end|>⟧" in printed
    assert "After:  'In Norway.'" in printed and "Before: 'In Norway.'" not in printed


@pytest.mark.slow
def test_it_runs_from_the_command_line(
    repository: Path, tiny_model_folder: Path, write_jsonl: Callable[..., Path]
) -> None:
    command = [
        sys.executable,
        "examples/teach_sft.py",
        str(tiny_model_folder),
        str(write_jsonl("t.jsonl", ROWS)),
        "--steps",
        "2",
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "step    2   loss" in done.stdout


def test_every_reply_is_trained_on_and_nothing_else(teach: ModuleType, tokenizer: Any) -> None:
    ids, mask = teach.build_row(chat("Where is Oslo?", "In Norway.", "And Rome?", "In Italy.")["messages"], tokenizer)
    trained = tokenizer.decode([token for token, on in zip(ids, mask, strict=True) if on])
    assert trained == "In Norway.<|im_end|>In Italy.<|im_end|>"
    assert tokenizer.decode(ids).count("<|im_end|>") == 4


def test_the_prompt_is_tokenized_as_it_is_served(teach: ModuleType, tokenizer: Any) -> None:
    messages = chat("Where is Oslo?", "In Norway.")["messages"]
    ids, mask = teach.build_row(messages, tokenizer)
    served = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert ids[: mask.index(True)] == served


def test_a_fresh_correction_changes_nothing_and_the_base_stays(teach: ModuleType, model: Any) -> None:
    tokens = torch.arange(12)[None]
    before, weights = model(input_ids=tokens).logits, {k: v.clone() for k, v in model.state_dict().items()}
    trained = teach.add_lora(model, rank=4, alpha=8.0)
    model.double()
    after = model(input_ids=tokens).logits
    assert torch.equal(before, after)
    after.sum().backward()
    assert all(parameter.grad is not None for parameter in trained)
    assert all(
        torch.equal(weights[k.replace(".base", "")], v)
        for k, v in model.state_dict().items()
        if k[-2:] not in (".a", ".b")
    )


def test_the_loss_is_the_surprise_at_the_trained_tokens(teach: ModuleType, model: Any) -> None:
    ids, mask = [5, 6, 7, 8], [False, False, True, True]
    log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = -(log_p[1, 7] + log_p[2, 8])
    assert teach.summed_loss(model, ids, mask).item() == pytest.approx(expected.item(), rel=1e-5)
