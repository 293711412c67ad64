"""Tokens of one's own: added to the tokenizer, their rows trained alone, saved and merged; refused where impossible."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engine_runs import tiny_llama
from tests.quantized import quantize
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from luthier.adapters.dora import DoRA
from luthier.adapters.lora import LoRA
from luthier.data.templates import build_template
from luthier.errors import ModelError
from luthier.examples import Conversation, Message, Row
from luthier.models.forest import build_batch
from luthier.models.kernels import native
from luthier.models.kernels.decoder import has_plain_head
from luthier.models.kernels.head import head_scores, head_scores_plain
from luthier.models.load import LoadedModel
from luthier.models.new_tokens import add_to_tokenizer, with_new_tokens
from luthier.models.scorer import Scorer

TOKENS = ("<tool>", "</tool>")
Make = Callable[..., LoadedModel]


def untied(dtype: torch.dtype = torch.float32) -> Any:
    config = copy.deepcopy(tiny_llama().config)
    config.tie_word_embeddings = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype)


def grown(make_tiny: Make) -> LoadedModel:
    return with_new_tokens(make_tiny(), TOKENS)


def adapted(loaded: LoadedModel, kind: Any = LoRA, **settings: Any) -> Any:
    adapter = kind(new_tokens=TOKENS, **settings)
    ready = adapter.reading(lambda text: loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    return ready.inject(loaded.model, seed=0)


def test_new_tokens_get_the_next_ids_and_begin_as_the_mean_of_their_pieces(make_tiny: Make) -> None:
    plain, loaded = make_tiny(), grown(make_tiny)
    first = len(plain.tokenizer)
    assert [loaded.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TOKENS] == [[first], [first + 1]]
    before: Any = plain.model.get_parameter("model.embed_tokens.weight")
    after: Any = loaded.model.get_parameter("model.embed_tokens.weight")
    assert after.shape[0] == loaded.model.config.vocab_size == first + 2  # type: ignore[union-attr]
    assert torch.equal(after[:first], before)
    for number, text in enumerate(TOKENS):
        pieces = plain.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(pieces) > 1
        torch.testing.assert_close(after[first + number], before[pieces].mean(0))
    model: Any = loaded.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "tied tables stay tied"


def test_rows_that_a_model_has_to_spare_are_taken_and_none_is_added(make_tiny: Make) -> None:
    loaded = make_tiny()
    model: Any = loaded.model
    first = len(loaded.tokenizer)
    model.resize_token_embeddings(first + 8, mean_resizing=False)
    pieces = loaded.tokenizer(TOKENS[0], add_special_tokens=False)["input_ids"]
    with_new_tokens(loaded, TOKENS)
    weight = model.get_input_embeddings().weight
    assert weight.shape[0] == first + 8
    torch.testing.assert_close(weight[first], weight[pieces].mean(0))


def test_the_random_state_is_left_as_it_was(make_tiny: Make) -> None:
    loaded = make_tiny()
    before = torch.get_rng_state()
    with_new_tokens(loaded, TOKENS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (("<|im_start|>",), "is a token of this model already"),
        (("<tool>", "<tool>"), "stands there twice"),
        (("§",), "two characters or more"),
        ((" <tool>",), "without space at its ends"),
    ],
)
def test_what_cannot_be_a_new_token_is_refused_and_nothing_is_added(
    texts: tuple[str, ...], said: str, make_tiny: Make
) -> None:
    tokenizer = make_tiny().tokenizer
    before = len(tokenizer)
    with pytest.raises(ModelError, match=said):
        add_to_tokenizer(tokenizer, texts)
    assert len(tokenizer) == before


def test_a_word_that_is_one_token_already_is_refused(make_tiny: Make) -> None:
    tokenizer = make_tiny().tokenizer
    words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    word = next(word for word in words if len(word) > 2 and word.isalpha())
    with pytest.raises(ModelError, match=f"{word}' is a token of this model already"):
        add_to_tokenizer(tokenizer, (word,))


def test_a_reply_and_the_template_write_them_and_a_user_s_text_does_not(make_tiny: Make) -> None:
    loaded = grown(make_tiny)
    template = build_template(loaded, "model")
    chat = (Message("user", "Say <tool>."), Message("assistant", "<tool>x</tool>"))
    (row,) = template.rows(Conversation(chat))
    new = set(loaded.tokenizer.convert_tokens_to_ids(list(TOKENS)))
    held = [i for i, token in enumerate(row.ids) if token in new]
    assert len(held) == 2 and all(row.loss_mask[i] for i in held)
    reply = [token for token, mask in zip(row.ids, row.loss_mask, strict=True) if mask]
    assert template.parse_reply(reply).content == "<tool>x</tool>"


@pytest.mark.parametrize("make", [tiny_llama, untied])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_only_these_rows_train_and_both_tables_follow_them(make: Any, dtype: torch.dtype) -> None:
    model = make(dtype=dtype)
    base = copy.deepcopy(model)
    injected = LoRA(targets=("q_proj",), new_tokens=("57", "59")).reading(lambda t: [int(t)]).inject(model, seed=0)
    name, rows = next((n, p) for n, p in injected.trainable.items() if "lora" not in n)
    tied = make is tiny_llama
    assert name == "model.embed_tokens.tokens.rows" and rows.shape == (1 if tied else 2, 2, 32)
    assert rows.dtype == torch.float32 and dict(model.named_parameters())[name] is rows
    ids = torch.tensor([[3, 57, 9, 59, 4]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, base(ids).logits)
        rows += 0.25
        wanted = copy.deepcopy(base)
        for table in {wanted.get_input_embeddings().weight, wanted.get_output_embeddings().weight}:
            table[[57, 59]] += 0.25
        close = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(model(ids).logits, wanted(ids).logits, atol=close, rtol=close)
        with injected.disabled():
            assert torch.equal(model(ids).logits, base(ids).logits)
        injected.merge()
        torch.testing.assert_close(model(ids).logits, wanted(ids).logits, atol=close, rtol=close)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
        assert torch.equal(model.get_input_embeddings().weight[:57], base.get_input_embeddings().weight[:57])


@pytest.mark.parametrize("make", [tiny_llama, untied])
def test_gradients_are_those_of_the_same_rows_of_whole_tables(make: Any) -> None:
    """Through the head's kernel and through the embedding, as if the matrices themselves trained."""
    model, whole = make(), make()
    whole.requires_grad_(True)
    injected = LoRA(targets=("q_proj",), new_tokens=("57", "59")).reading(lambda t: [int(t)]).inject(model, seed=0)
    assert has_plain_head(model)
    row = [3, 57, 9, 59, 4, 57, 8]
    batch = build_batch([Row(tuple(row), (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0))])
    assert injected.rows is not None
    rows = injected.rows.tokens.rows
    (found,) = torch.autograd.grad(Scorer(model).token_logprobs(batch).sum(), [rows])
    tables = [whole.get_input_embeddings().weight]
    tables += [] if make is tiny_llama else [whole.get_output_embeddings().weight]
    wanted = torch.autograd.grad(Scorer(whole).token_logprobs(batch).sum(), tables)
    torch.testing.assert_close(found, torch.stack([g[[57, 59]] for g in wanted]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kernel_of_the_head_agrees_with_its_reference(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 32, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 32, generator=generator).to(dtype)
    rows = (torch.randn(3, 32, generator=generator) * 0.3).requires_grad_()
    ids, row_Q, target_Q = torch.tensor([4, 40, 7]), torch.tensor([0, 1, 1, 3, 5]), torch.tensor([4, 2, 40, 7, 9])
    assert native.serves(hidden)
    results = []
    for compute in (head_scores, head_scores_plain):
        out, _ = compute(hidden, weight, row_Q, target_Q, (ids, rows))
        results.append([out, *torch.autograd.grad(out.sum(), [hidden, rows])])
    for found, wanted in zip(*results, strict=True):
        close = 1e-5 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(found, wanted, atol=close, rtol=close)


@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_an_artifact_holds_the_rows_and_opens_with_the_same_tokens(kind: Any, make_tiny: Make, tmp_path: Path) -> None:
    loaded, again = grown(make_tiny), grown(make_tiny)
    injected = adapted(loaded, kind)
    with torch.no_grad():
        for i, p in enumerate(injected.trainable.values()):
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    injected.save(tmp_path, "tiny")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    first = len(make_tiny().tokenizer)
    assert config["trainable_token_indices"] == [first, first + 1]
    kind().restore(again.model, tmp_path)
    ids = torch.tensor([[5, first, 7, first + 1]])
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, again.model(ids).logits)
    with pytest.raises(ModelError, match=r"adapter\.new_tokens"):
        kind().restore(make_tiny().model, tmp_path)


def test_a_quantized_embedding_cannot_grow(make_tiny: Make) -> None:
    from dataclasses import replace

    from luthier.models.quantize.gguf import GGUFEmbedding

    loaded = make_tiny()
    model: Any = quantize(loaded.model, "nf4")
    with_new_tokens(replace(loaded, tokenizer=copy.deepcopy(loaded.tokenizer)), TOKENS)  # nf4 leaves it dense
    head = quantize(tiny_llama(), "gguf")
    embedding = GGUFEmbedding.__new__(GGUFEmbedding)
    torch.nn.Module.__init__(embedding)
    head.set_input_embeddings(embedding)
    with pytest.raises(ModelError, match=r"kinds GGUFEmbedding and Linear.*'nf4'"):
        with_new_tokens(replace(loaded, model=head), TOKENS)
    assert model is loaded.model and isinstance(loaded.tokenizer.backend_tokenizer, Tokenizer)


@pytest.mark.parametrize(("target", "what"), [("lm_head", "output head"), ("embed_tokens", "embedding")])
def test_embedding_and_head_as_targets_are_refused_with_what_to_do(target: str, what: str) -> None:
    for model, one in ((tiny_llama(), True), (untied(), False)):
        with pytest.raises(ModelError, match=rf"{target}' is the {what}.*adapter\.new_tokens.*layer_freeze") as caught:
            LoRA(targets=("q_proj", target)).inject(model, seed=0)
        assert ("are one matrix" in str(caught.value)) is one
