"""What llama.cpp must know of a model: its shape, its tensors under other names, its tokenizer.

Traps, each of which yields a file that loads and answers nonsense: Llama's query and key rows stand in another order
there (rotary pairs are neighbors, not halves); a tied head must not be written twice; the rule that cuts text into
words has a name, and another name cuts otherwise; a token that is not marked as a control token is read as text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, TokenType, get_tensor_name_map
from torch import Tensor

from luthier.errors import ExportError

ARCHITECTURES: Mapping[str, MODEL_ARCH] = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
_PERMUTED = frozenset({"llama"})
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder that GGUF asks for."""

    kind: str
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    config: Mapping[str, Any]


def shape_of(model: Any, name: str) -> Shape:
    """The model's shape.

    Raises:
        ExportError: its architecture, or a part of it, has no counterpart here.
    """
    config: dict[str, Any] = model.config.get_text_config().to_dict()
    kind = str(config["model_type"])
    if kind not in ARCHITECTURES:
        raise ExportError(
            f"{name}: a {kind} model cannot be written as GGUF here; {', '.join(ARCHITECTURES)} can. "
            "Use --format safetensors, which llama.cpp's own converter reads"
        )
    rope = config.get("rope_parameters") or {}
    odd = [] if rope.get("rope_type", "default") == "default" else [f"rotary positions of type {rope['rope_type']}"]
    odd += ["sliding-window attention"] if "sliding_attention" in (config.get("layer_types") or []) else []
    if odd:
        raise ExportError(f"{name}: {' and '.join(odd)} cannot be written as GGUF here; use --format safetensors")
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    return Shape(kind, int(config["num_hidden_layers"]), heads, kv_heads, head_dim, config)


def add_shape(writer: GGUFWriter, shape: Shape) -> None:
    """The model's numbers."""
    config = shape.config
    writer.add_block_count(shape.layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def architecture_name(shape: Shape) -> str:
    """What GGUF calls the architecture."""
    return str(MODEL_ARCH_NAMES[ARCHITECTURES[shape.kind]])


class Names:
    """GGUF's names of a model's tensors."""

    def __init__(self, shape: Shape) -> None:
        self._known = get_tensor_name_map(ARCHITECTURES[shape.kind], shape.layers)

    def of(self, name: str) -> str:
        """GGUF's name of a tensor.

        Raises:
            ExportError: it has none, so the file could not hold all of the model.
        """
        found = self._known.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(f"the tensor {name} has no place in a GGUF file of this architecture")
        return str(found)


def tensors_of(model: Any, shape: Shape) -> Iterator[tuple[str, Tensor]]:
    """Each tensor once (a tied head is left out), under GGUF's name, its rows in llama.cpp's order."""
    names = Names(shape)
    for name, tensor in model.named_parameters():
        yield names.of(name), ordered(name, tensor.detach(), shape)


def ordered(name: str, weight: Tensor, shape: Shape) -> Tensor:
    """Query and key rows of Llama with the two of each rotary pair side by side; every other tensor as it is."""
    part = name.rpartition(".")[0]
    if shape.kind not in _PERMUTED or not part.endswith(("q_proj", "k_proj")):
        return weight
    heads = shape.heads if part.endswith("q_proj") else shape.kv_heads
    halves = weight.view(heads, 2, shape.head_dim // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def pre_tokenizer_of(tokenizer: Any, name: str) -> str:
    """llama.cpp's name of the rule by which a byte-level tokenizer cuts text into words.

    Raises:
        ExportError: the tokenizer is of another kind, or its rule is none that is known here.
    """
    found = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer = (found["normalizer"] or {}).get("type")
    parts = _parts(found["pre_tokenizer"])
    if found["model"]["type"] == "BPE" and not found["model"].get("byte_fallback") and normalizer in (None, "NFC"):
        for rule, known in _RULES.items():
            if parts == known:
                return rule
    raise ExportError(
        f"{name}: its tokenizer ({found['model']['type']}, {', '.join(str(part[0]) for part in parts) or 'no rule'}) "
        f"cuts text by a rule that has no known name in llama.cpp; known are those of {', '.join(_RULES)}. "
        "Use --format safetensors"
    )


_WORDS_OF_GPT2 = ("ByteLevel", True)
_BYTES_ONLY = ("ByteLevel", False)
_RULES: Mapping[str, list[tuple[str, Any]]] = {
    "smollm": [("Digits", True), _WORDS_OF_GPT2],
    "gpt-2": [_WORDS_OF_GPT2],
    "qwen2": [("Split", _QWEN2_WORDS), _BYTES_ONLY],
    "llama-bpe": [("Split", _LLAMA3_WORDS), _BYTES_ONLY],
}


def _parts(rule: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """The steps of a pre-tokenizer, each with what decides where it cuts."""
    if rule is None:
        return []
    if rule["type"] == "Sequence":
        return [part for inner in rule["pretokenizers"] for part in _parts(inner)]
    decides = {
        "Digits": lambda: rule["individual_digits"],
        "ByteLevel": lambda: rule["use_regex"] if not rule["add_prefix_space"] else "with a space in front",
        "Split": lambda: rule["pattern"].get("Regex") if rule["behavior"] == "Isolated" else rule["behavior"],
    }
    return [(rule["type"], decides[rule["type"]]() if rule["type"] in decides else None)]


def add_tokenizer(writer: GGUFWriter, tokenizer: Any, size: int, pre: str) -> None:
    """Tokens, their kinds, merges and special ids; `size` is how many rows the embedding has."""
    added = tokenizer.added_tokens_decoder
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    tokens, kinds = [], []
    for index in range(size):
        if index in added:
            tokens.append(added[index].content)
            kinds.append(TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED)
        elif index in by_id:
            tokens.append(by_id[index])
            kinds.append(TokenType.NORMAL)
        else:  # rows that make the matrix a round size
            tokens.append(f"[PAD{index}]")
            kinds.append(TokenType.UNUSED)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    writer.add_add_space_prefix(False)
    opening = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True).ids[:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and opening == [tokenizer.bos_token_id])
    for add, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if index is not None:
            add(index)
