"""A small GGUF file: two layers, a byte-level vocabulary, matrices in blocks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

HIDDEN, LAYERS, WIDE, HEADS, KV_HEADS = 64, 2, 128, 4, 2
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level vocabulary; white space and digits would merge if nothing kept them apart."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = ["Ċ Ġ", "Ġ 1", "ĊĠ 1", "1 2", "h i"]
    return [*CONTROL, *alphabet, *(m.replace(" ", "") for m in merges)], merges


def weight_of(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.05, shape).astype(np.float32)


def _add(writer: GGUFWriter, name: str, values: np.ndarray, kind: GGMLQuantizationType | None = None) -> None:
    if kind is None:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)


def write_gguf(
    path: Path,
    arch: str = "llama",
    template: str | None = None,
    output: np.ndarray | None = None,
    embedding: np.ndarray | None = None,
    user_defined: Sequence[str] = (),
) -> Path:
    """A two-layer model; `output` is a second matrix of the vocabulary, beside an embedding stored in four bits, or
    as `embedding`: blocks of IQ4_NL. `user_defined`: tokens that are told to be added ones, not special."""
    tokens, merges = vocabulary()
    writer = GGUFWriter(path, arch)
    writer.add_context_length(256)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if arch == "llama" else "qwen2")
    writer.add_token_list(tokens)
    kinds = {**dict.fromkeys(CONTROL, TokenType.CONTROL), **dict.fromkeys(user_defined, TokenType.USER_DEFINED)}
    writer.add_token_types([kinds.get(token, TokenType.NORMAL) for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    if template is not None:
        writer.add_chat_template(template)
    if embedding is None:
        _add(writer, "token_embd.weight", weight_of(0, len(tokens), HIDDEN), GGMLQuantizationType.Q4_0)
    else:
        writer.add_tensor("token_embd.weight", embedding, raw_dtype=GGMLQuantizationType.IQ4_NL)
    if output is not None:
        _add(writer, "output.weight", output, GGMLQuantizationType.Q8_0)
    _add(writer, "output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    for layer in range(LAYERS):
        _add_layer(writer, f"blk.{layer}.", 10 * (layer + 1), biases=arch == "qwen2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_layer(writer: GGUFWriter, prefix: str, seed: int, biases: bool) -> None:
    narrow = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "attn_q": (HIDDEN, HIDDEN),
        "attn_k": (narrow, HIDDEN),
        "attn_v": (narrow, HIDDEN),
        "attn_output": (HIDDEN, HIDDEN),
        "ffn_gate": (WIDE, HIDDEN),
        "ffn_up": (WIDE, HIDDEN),
        "ffn_down": (HIDDEN, WIDE),
    }
    for i, (name, shape) in enumerate(shapes.items()):
        _add(writer, f"{prefix}{name}.weight", weight_of(seed + i, *shape), GGMLQuantizationType.Q8_0)
    for name in ("attn_norm", "ffn_norm"):
        _add(writer, f"{prefix}{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    for name in ("attn_q", "attn_k", "attn_v") if biases else ():
        _add(writer, f"{prefix}{name}.bias", np.zeros(shapes[name][0], dtype=np.float32))


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
