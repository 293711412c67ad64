"""The parts of exports that need no run: names, order of rows, number formats, tokenizers, Modelfiles."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tests.small_tokenizers import BYTES, CHATML, EMPTY_THINKING, FORGETS_THINKING, TOKENIZERS, chat
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from luthier.data.templates import Template
from luthier.errors import ExportError
from luthier.export.formats._gguf_file import Shape, ordered, pre_tokenizer_of, shape_of
from luthier.export.formats._modelfile import Modelfile, derive, read, write
from luthier.export.formats._quantize import kind_of, like_other_side, rounded
from luthier.export.formats.base import require_package


def template(source: str) -> Template:
    stops = frozenset({BYTES.convert_tokens_to_ids("<|im_end|>")})
    return Template(BYTES, source, "probe", stop_ids=stops)


def model(config: Any) -> Any:
    return SimpleNamespace(config=config)


def test_an_architecture_without_a_counterpart_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(ExportError, match=r"a gemma3_text model cannot be .* llama, qwen2, qwen3 can"):
        shape_of(model(Gemma3TextConfig()), "gemma")


@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_positions_that_the_file_would_not_carry_are_refused(kind: str) -> None:
    config = LlamaConfig()
    config.rope_parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ExportError, match=f"rotary positions of type {kind}"):
        shape_of(model(config), "long")


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_only_tokenizers_whose_rule_has_a_name_are_written(name: str) -> None:
    if name == "byte_level":
        assert pre_tokenizer_of(TOKENIZERS[name], name) == "gpt-2"
    else:
        with pytest.raises(ExportError, match="has no known name"):
            pre_tokenizer_of(TOKENIZERS[name], name)


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), bytes_only])


DIGITS = pre_tokenizers.Digits(individual_digits=True)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (pre_tokenizers.Sequence([DIGITS, GPT2]), "smollm"),
        (split_by(PRETOKENIZE_REGEX), "qwen2"),
        (split_by(PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), "llama-bpe"),
        (split_by(PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,2}|")), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), GPT2]), None),
    ],
)
def test_the_rule_that_cuts_words_gets_the_name_that_llama_cpp_has_for_it(rule: Any, name: str | None) -> None:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = rule
    tokenizer = SimpleNamespace(backend_tokenizer=backend)
    if name is None:
        with pytest.raises(ExportError, match="has no known name"):
            pre_tokenizer_of(tokenizer, "odd")
    else:
        assert pre_tokenizer_of(tokenizer, "known") == name


def test_rotary_pairs_of_llama_become_neighbors_and_those_of_qwen_stay() -> None:
    rows = torch.arange(16.0)[:, None].expand(16, 4)
    llama, qwen = (Shape(kind, 1, 2, 2, 8, {}) for kind in ("llama", "qwen2"))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert ordered(name, rows, llama)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert torch.equal(ordered(name, rows, qwen), rows)
    assert torch.equal(ordered(name.replace("q_proj", "v_proj"), rows, llama), rows)


def test_q4_k_m_is_the_mix_that_llama_cpp_makes() -> None:
    wide = (512, 512)
    assert kind_of("q4_k_m", "token_embd.weight", wide, 32) == Kind.Q6_K
    more = [i for i in range(32) if kind_of("q4_k_m", f"blk.{i}.ffn_down.weight", wide, 32) == Kind.Q6_K]
    assert more == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert kind_of("q4_k_m", "blk.0.ffn_up.weight", wide, 32) == Kind.Q4_K
    narrow = (512, 576)  # blocks of 256 do not divide it
    assert kind_of("q4_k_m", "blk.0.ffn_up.weight", narrow, 32) == Kind.Q5_0
    assert kind_of("q4_k_m", "blk.0.attn_v.weight", narrow, 32) == Kind.Q8_0
    assert kind_of("q8_0", "blk.0.attn_v.weight", (512, 40), 32) == Kind.F16
    assert kind_of("q8_0", "blk.0.attn_norm.weight", (512,), 32) == Kind.F32


@pytest.mark.parametrize(
    ("kind", "most"),
    [(Kind.F32, 0), (Kind.F16, 3e-4), (Kind.BF16, 2e-3), (Kind.Q8_0, 7e-3), (Kind.Q6_K, 2.5e-2), (Kind.Q4_K, 0.1)],
)
def test_a_number_format_keeps_what_its_bits_allow(kind: Kind, most: float) -> None:
    if kind in (Kind.Q6_K, Kind.Q4_K):
        pytest.importorskip("libgguf")
    weight = torch.randn(16, 512, generator=torch.Generator().manual_seed(0))
    error = float((rounded(weight, kind) - weight).norm() / weight.norm())
    assert error <= most and (error > most / 4 or kind == Kind.F32)


@pytest.mark.parametrize("source", [CHATML, EMPTY_THINKING, "{{ bos_token }}" + CHATML.replace("<|im_start|>", "[")])
def test_a_template_of_one_pattern_is_written_in_go_and_read_back(source: str) -> None:
    made = template(source)
    if source.startswith("{{ bos"):  # it is literal here, for this tokenizer puts none itself
        with pytest.raises(ExportError, match="by one pattern"):
            derive(made, BYTES, "model.gguf")
        return
    found = read(write(derive(made, BYTES, "model.gguf")))
    assert found.stops == ("<|im_end|>",) and found.file == "model.gguf"
    for messages in (chat("one"), chat("a", "b\n", " c", system="s"), chat("x", "y", "z")):
        assert found.render(made.seen(messages)) == made.text(messages, add_generation_prompt=True)


def test_a_default_system_message_becomes_the_modelfiles_own() -> None:
    source = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}" + CHATML
    made = template(source)
    found = derive(made, BYTES, "model.gguf")
    assert found.system == "Be kind."
    for messages in (chat("one"), chat("one", system="other")):
        assert found.render(made.seen(messages)) == made.text(messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}",
        CHATML.replace("message['role']", "('model' if message['role'] == 'assistant' else message['role'])"),
        CHATML.replace("+ '<|im_end|>'", "+ ('' if message['role'] == 'system' else '<|im_end|>')"),
        CHATML.replace("'\n' +", "'{{ x }}' +"),
    ],
)
def test_a_template_of_another_pattern_is_refused(source: str) -> None:
    with pytest.raises(ExportError, match="by one pattern"):
        derive(template(source), BYTES, "model.gguf")


@pytest.mark.parametrize(
    "source", [FORGETS_THINKING, CHATML.replace("message['content']", "message['content'] | trim")]
)
def test_a_template_that_only_looks_like_one_pattern_shows_when_chats_are_rendered(source: str) -> None:
    from luthier.export.formats.ollama import CHATS

    made = template(source)
    found = derive(made, BYTES, "model.gguf")
    same = [found.render(made.seen(c)) == made.text(c, add_generation_prompt=True) for c in CHATS]
    assert not all(same)


def test_a_modelfile_that_says_more_than_is_understood_is_refused() -> None:
    odd = Modelfile("m.gguf", "{{ .Prompt }}", None, ())
    with pytest.raises(ExportError, match="not of the kind"):
        odd.render([{"role": "user", "content": "x"}])
    with pytest.raises(ExportError, match="names no file"):
        read("TEMPLATE x\n")


def test_the_other_side_of_a_product_is_rounded_in_the_blocks_that_llama_cpp_uses() -> None:
    weight = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    wide, narrow = like_other_side(weight, Kind.Q4_K), like_other_side(weight, Kind.Q5_0)
    assert torch.equal(narrow, rounded(weight, Kind.Q8_0))
    assert torch.equal(like_other_side(weight, Kind.F16), rounded(weight, Kind.F16))
    step = weight.view(-1, 256).abs().amax(-1).repeat_interleave(256).view(4, 512) / 127
    assert ((wide - weight).abs() <= step / 2 * 1.001).all() and (wide != narrow).any()


def test_a_program_that_is_missing_is_named_with_what_installs_it() -> None:
    with pytest.raises(
        ExportError, match=r"`no_such_program` is not installed, and it opens the file: `pip install x`"
    ):
        require_package("no_such_program", "pip install x", "it opens the file")


@pytest.mark.parametrize(
    ("written", "told", "places"),
    [
        ([5, 6, 7], [5, 6, 7], [0, 1, 2]),
        ([5, 9, 6], [5, 6], [0, 2]),
        ([9, 9, 5], [9, 5], [2]),  # which of the two nines was told of cannot be known
        ([9, 5, 9], [5], [1]),
    ],
)
def test_log_probabilities_go_only_to_tokens_that_they_must_belong_to(
    written: list[int], told: list[int], places: list[int]
) -> None:
    pytest.importorskip("xllamacpp")
    from luthier.export.reload_llama_cpp import aligned

    found = aligned(written, [{"id": token, "logprob": -float(token)} for token in told])
    assert [place for place, value in enumerate(found) if value is not None] == places
    assert all(value in (None, -float(token)) for token, value in zip(written, found, strict=True))


def test_rounding_is_done_row_by_row_so_that_their_order_does_not_matter() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    order = np.random.default_rng(0).permutation(8)
    assert torch.equal(rounded(weight[order], Kind.Q8_0), rounded(weight, Kind.Q8_0)[order])
