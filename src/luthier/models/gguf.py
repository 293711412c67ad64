"""A GGUF file becomes a plain model folder: safetensors, config.json, tokenizer. Done once, outside of any training.

The reader is the one of `transformers`; around it stands what it leaves undone (each with a test): a load that stays
marked as quantized, a digit splitter that is not carried over, a tied matrix that is stored twice, an end-of-turn token
that is not an end for generation, and a base model without a chat template.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.errors import ModelError

BFLOAT16_ABOVE_PARAMETERS = 1_000_000_000
"""Larger models are kept as bfloat16; at this size float32 copies of 4-bit weights only cost disk."""

GEMMA_TEMPLATE = """{{- bos_token -}}
{%- set opening = namespace(text='') -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- set opening.text = messages[0].content | trim + '\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if message.role not in ('user', 'assistant') -%}
        {{- raise_exception('Gemma knows the roles user and assistant, and a system message at the beginning') -}}
    {%- endif -%}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' -}}
    {{- opening.text if loop.first else '' -}}
    {{- message.content | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` to the empty folder `folder`.

    Raises:
        ModelError: the file is not GGUF, or its architecture or tokenizer cannot be read.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(f"{gguf}: not a GGUF file that can be read: {error}") from None
    dtype = torch.bfloat16 if _parameters(reader) > BFLOAT16_ABOVE_PARAMETERS else torch.float32
    tokenizer = _read_tokenizer(gguf, reader)
    model = _read_model(gguf, dtype)
    _tie(model, reader)
    _set_stop_ids(model, tokenizer, reader)
    model.config.name_or_path = ""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _field(reader: Any, name: str) -> Any:
    """The value of a metadata field, or None where the file has none."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _parameters(reader: Any) -> int:
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _read_model(gguf: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        return AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=dtype,
            # without it the model stays marked as quantized: it can be neither saved nor trained
            quantization_config=GgufConfig(dequantize=True),
            local_files_only=True,
        )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{gguf}: this architecture cannot be read from GGUF: {error}") from None


def _read_tokenizer(gguf: Path, reader: Any) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{gguf}: its architecture or tokenizer cannot be read from GGUF: {error}") from None
    if _field(reader, "tokenizer.ggml.pre") == "smollm":
        # the reader does not carry the digit splitter over: "\n 12" would be cut as the model never saw it
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    vocabulary = tokenizer.get_vocab()
    if tokenizer.chat_template is None and {"<start_of_turn>", "<end_of_turn>"} <= vocabulary.keys():
        tokenizer.chat_template = GEMMA_TEMPLATE
    return tokenizer


def _tie(model: Any, reader: Any) -> None:
    """Use one matrix for input and output where the file stores the same one twice, at two precisions.

    Of the two copies the one with more bits is kept. Loaded untied, they would train apart and cost memory.
    """
    config = model.config.get_text_config()
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if config.tie_word_embeddings or "output.weight" not in tensors or "token_embd.weight" not in tensors:
        return
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if not _same_matrix(inputs.weight, outputs.weight):
        return
    bits = {name: tensors[name].n_bytes / tensors[name].n_elements for name in ("output.weight", "token_embd.weight")}
    better = outputs.weight if bits["output.weight"] >= bits["token_embd.weight"] else inputs.weight
    config.tie_word_embeddings = True
    model.config.tie_word_embeddings = True
    inputs.weight = better
    model.tie_weights()


def _same_matrix(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two matrices differ by no more than 4-bit rounding does (about a tenth); unrelated ones differ by 1.4."""
    if a.shape != b.shape:
        return False
    rows = torch.from_numpy(np.linspace(0, a.shape[0] - 1, num=min(2048, a.shape[0])).astype(np.int64))
    x, y = a.detach()[rows].float(), b.detach()[rows].float()
    return bool((x - y).norm() < 0.25 * y.norm())


def _set_stop_ids(model: Any, tokenizer: Any, reader: Any) -> None:
    """Name every token that ends a reply: a base model's `<eos>` is not what ends its chat turns."""
    from transformers import GenerationConfig

    vocabulary = tokenizer.get_vocab()
    ids = [
        tokenizer.eos_token_id,
        _field(reader, "tokenizer.ggml.eos_token_id"),
        _field(reader, "tokenizer.ggml.eot_token_id"),
    ]
    ids += [vocabulary[mark] for mark in ("<end_of_turn>",) if mark in vocabulary]
    stops = list(dict.fromkeys(int(i) for i in ids if i is not None))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=stops[0] if len(stops) == 1 else stops,
        pad_token_id=tokenizer.pad_token_id,
    )
