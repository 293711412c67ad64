"""Small tokenizers of every family, templates that do what models' own do, and what tests of both need."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.examples import Message, Role

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FORGETS_THINKING = (  # as Qwen3 does: the reasoning of every turn but the last is left out
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMPTY_THINKING = CHATML.replace(
    "<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>\n\n</think>\n\n' }}{% endif"
)
OPEN_THINKING = CHATML.replace("<|im_start|>assistant\n' }}{% endif", "<|im_start|>assistant\n<think>\n' }}{% endif")

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
STRUCTURAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")
TEXTS = [
    "a user asks and an assistant answers in one street of the city 62701",
    "system\nuser\nassistant\n what is the capital of France? Paris. <tool_call> name arguments </tool_call> <think>",
]


def wrap(tokenizer: Tokenizer, **specials: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(list(CONTROL))
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in STRUCTURAL])
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", **specials}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def byte_level(vocab_size: int = 400, **specials: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return wrap(tokenizer, **specials)


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """BPE over ▁-marked words with byte fallback, as Llama 2 and Mistral have it; `scheme` is where a space is put."""
    pieces = [f"<0x{i:02X}>" for i in range(256)] + ["▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "yo", "▁yo"]
    vocab = {piece: i for i, piece in enumerate(["<unk>", *CONTROL, *pieces])}
    merges = [("▁", "a"), ("y", "o"), ("▁", "yo")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """Control tokens are pieces with the best scores, as in converted SentencePiece models."""
    pieces = [("<unk>", 0.0), *((c, 0.0) for c in CONTROL), *((chr(i), -3.0) for i in range(32, 127)), ("\n", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    return wrap(tokenizer)


def word_level() -> PreTrainedTokenizerFast:
    words = ["<unk>", *CONTROL, *STRUCTURAL, "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(tokenizer)


TOKENIZERS = {
    "byte_level": byte_level(),
    "metaspace_first": sentencepiece("first"),
    "metaspace_always": sentencepiece("always"),
    "legacy": sentencepiece("legacy"),
    "unigram": unigram(),
    "word_level": word_level(),
}
BYTES = TOKENIZERS["byte_level"]


def chat(*turns: str | Message, system: str | None = None) -> tuple[Message, ...]:
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [t if isinstance(t, Message) else Message(roles[i % 2], t) for i, t in enumerate(turns)]
    return (*([Message("system", system)] if system is not None else []), *messages)


def reference_ids(tokenizer: Any, source: str, messages: Sequence[Message]) -> list[int]:
    dicts = [{"role": m.role, "content": m.content} for m in messages]
    done = tokenizer.apply_chat_template(dicts, chat_template=source, tokenize=True, return_dict=True)
    return list(done["input_ids"])


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "where"}}},
    },
}
