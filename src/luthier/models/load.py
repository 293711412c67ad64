"""A verified folder becomes a model in memory, with its tokenizer and the ids that end a turn.

Only weights are read, never code: a repository that brings its own Python, or pickled weights, is refused. A weight
that the files lack is an error, not a random number.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors import SafetensorError
from torch import nn

from luthier.errors import ModelError
from luthier.models.catalog import ModelFiles, require_safetensors
from luthier.models.kernels.decoder import install
from luthier.models.packed import METHOD, load_packed
from luthier.models.processor import BFLOAT16, features

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_UNBOUNDED = 1 << 30


@dataclass(frozen=True)
class LoadedModel:
    """A base model that is ready to be scored, sampled from, or adapted."""

    model: nn.Module
    tokenizer: Any
    """The `transformers` tokenizer."""
    stop_ids: frozenset[int]
    """Ids that end an assistant turn."""
    max_tokens: int
    """Longest sequence the model was made for."""
    files: ModelFiles
    dtype: torch.dtype
    device: torch.device


def load(
    files: ModelFiles, precision: str = "auto", device: str = "auto", verify: bool = True, quantize: str = "none"
) -> LoadedModel:
    """Load the model of a folder that `catalog.resolve` returned; the global random state is left as it was.

    Args:
        files: where the model is.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where this machine multiplies it faster.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, or `auto` for the first of cuda, mps, cpu that is there.
        verify: compare every file with its digest first.
        quantize: how the frozen matrices are held: `none`, or the name of a format; then the dense model is never
            whole in memory, and `precision` is that of the products.

    Raises:
        ModelError: a file was changed, a weight is missing, or the model is of a kind that cannot be used.
        RecipeError: there is no format called `quantize`.
    """
    if verify:
        files.verify()
    require_safetensors(files.folder)
    require_supported(files, quantize)
    target = choose_device(device)
    dtype = choose_dtype(precision, target)
    tokenizer = load_tokenizer(files)
    model = (load_weights(files, dtype) if quantize == "none" else _load_packed(files, dtype, quantize)).to(target)
    model.eval()
    install(model)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ModelError(
            f"{files.name}: the tokenizer has {len(tokenizer)} tokens but the model embeds only {rows}; "
            "the tokenizer belongs to another model, or the embedding was not resized when tokens were added"
        )
    stop_ids = _stop_ids(model, tokenizer)
    return LoadedModel(model, tokenizer, stop_ids, _max_tokens(model, tokenizer), files, dtype, target)


def open_without_weights(files: ModelFiles) -> LoadedModel:
    """The model's tokenizer and shape: its tensors hold nothing (meta device), so only rows can be made with it.

    Raises:
        ModelError: the model is of a kind that cannot be used, or its tokenizer cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    require_supported(files, None)
    tokenizer = load_tokenizer(files)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(files.folder, local_files_only=True))
    if (files.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(files.folder, local_files_only=True)
    limit = _max_tokens(model, tokenizer)
    return LoadedModel(model, tokenizer, _stop_ids(model, tokenizer), limit, files, torch.float32, torch.device("meta"))


def choose_device(device: str) -> torch.device:
    """The device that a setting names; `auto` takes cuda, then mps, then cpu.

    Raises:
        ModelError: the name is no device, or this machine does not have it.
    """
    if device == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ModelError(f"model.device = {device!r} is no device; expected auto, cpu, cuda, cuda:1 or mps") from None
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(
        chosen.type, 0
    )
    if (chosen.index or 0) >= count:
        raise ModelError(f"model.device = {device!r}: this machine has {count} device(s) of that kind")
    return chosen


def wait_for(device: torch.device) -> None:
    """Wait until the device has done what it was given: a clock that is read before measures only the asking."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format that a setting names; `auto` takes bfloat16 where it is faster than float32 on `device`.

    An x86 processor says so itself, so that two runs on one machine compute in the same format however busy it is;
    others are timed.

    Raises:
        ModelError: the setting is unknown.
    """
    if precision in _DTYPES:
        return _DTYPES[precision]
    if precision != "auto":
        raise ModelError(f"model.precision = {precision!r}: expected auto, float32 or bfloat16")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and (features() & BFLOAT16 if _X86 & features() else bfloat16_speedup() >= 1.5):
        return torch.bfloat16
    return torch.float32


_X86 = frozenset({"sse2"})


@cache
def bfloat16_speedup() -> float:
    """How much faster this CPU multiplies bfloat16 matrices than float32 ones; measured once per process in 20 ms."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
        torch.mm(a, b)  # the first product pays for the library's set-up
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(a, b)
            runs.append(time.perf_counter() - start)
        seconds[dtype] = min(runs)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def require_supported(files: ModelFiles, quantize: str | None) -> None:
    """Refuse a model that brings code, that is an encoder-decoder, or whose weights are stored in another form.

    Raises:
        ModelError: it is one of these.
    """
    config = _read_config(files.folder)
    if "auto_map" in config:
        raise ModelError(
            f"{files.name}: config.json asks for Python code of its own (auto_map); code from a model is never run; "
            "use a model whose architecture transformers has"
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{files.name}: an encoder-decoder model ({config.get('model_type')}); "
            "only decoder models can be trained for now"
        )
    if stored := config.get("quantization_config"):
        method, held = stored.get("quant_method", "unknown"), stored.get("format")
        if method == METHOD and quantize in (None, held):
            return
        if method == METHOD:
            raise ModelError(f"{files.name}: its matrices are stored as {held}; set model.quantize = {held!r}")
        raise ModelError(
            f"{files.name}: the weights are stored quantized ({method}); give the unquantized model, "
            "or a GGUF file, which is expanded when it is read"
        )


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json as plain values.

    Raises:
        ModelError: the file is missing or is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as a model's configuration: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(config).__name__}")
    return config


def load_tokenizer(files: ModelFiles) -> Any:
    """The tokenizer of a model's folder.

    Raises:
        ModelError: it cannot be read, or is of the slow kind.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        tokenizer = AutoTokenizer.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{files.name}: its tokenizer cannot be loaded from {files.folder}: {error}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{files.name}: the tokenizer is a {type(tokenizer).__name__}; one with a tokenizer.json is needed"
        )
    return tokenizer


def load_weights(
    files: ModelFiles,
    dtype: torch.dtype,
    head: str = "CausalLM",
    spare: tuple[str, ...] = (),
    labels: int | None = None,
) -> Any:
    """The model of a folder, on the CPU; the global random state is left as it was.

    Args:
        files: where it is.
        dtype: number format of its weights.
        head: the transformers class is `AutoModelFor` and this; empty for `AutoModel`, the body alone, to which weights
            of a head that it does not have are no fault.
        spare: beginnings of names of weights that may be missing, because what they compute is not used, or because
            they begin to be trained.
        labels: numbers that a head for classification tells; None: as many as the folder says.

    Raises:
        ModelError: the files are damaged, or a weight is missing, of another shape, or too many.
    """
    import transformers

    auto = {
        "": transformers.AutoModel,
        "CausalLM": transformers.AutoModelForCausalLM,
        "SequenceClassification": transformers.AutoModelForSequenceClassification,
    }[head]
    try:
        with torch.random.fork_rng(devices=[]), no_progress_bars():
            model, report = auto.from_pretrained(
                files.folder,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are reported below, with their names
                **({} if labels is None else {"num_labels": labels}),
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{files.name}: cannot be loaded from {files.folder}: {error}") from None
    kinds = ["missing_keys", "mismatched_keys", *(["unexpected_keys"] if head else [])]
    for what in kinds:
        if keys := [key for key in sorted(map(str, report[what])) if not key.startswith(spare or "\0")]:
            raise ModelError(
                f"{files.name}: {len(keys)} {what.replace('_', ' ')} in its weights, such as {', '.join(keys[:3])}; "
                "config.json and weights do not belong together, or the download is incomplete"
            )
    return model


def _load_packed(files: ModelFiles, dtype: torch.dtype, quantize: str) -> Any:
    from transformers import GenerationConfig

    try:
        model = load_packed(files, dtype, quantize)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{files.name}: cannot be loaded from {files.folder}: {error}") from None
    if (files.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(files.folder, local_files_only=True)
    return model


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Loading and writing take seconds; their bars would be all that a short command prints."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _stop_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Ends named by the generation settings and the tokenizer, and the token that the template ends a reply with."""
    named = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    if tokenizer.chat_template is not None:
        ids.add(_end_of_turn(tokenizer))
    return frozenset(int(i) for i in ids if i is not None)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The first control token that the model's own template writes after a reply."""
    word = "brofind"
    messages = [{"role": "user", "content": "quelzap"}, {"role": "assistant", "content": word}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        KeyError,
    ):  # a template that refuses even this is reported when it is used
        return None
    tail = text.rpartition(word)[2]
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    places = {tail.find(content): i for content, i in added.items() if content.strip() and content in tail}
    return places[min(places)] if places else None


def _max_tokens(model: Any, tokenizer: Any) -> int:
    config = model.config.get_text_config().to_dict()
    limits = [config.get("max_position_embeddings"), tokenizer.model_max_length]
    return min(int(limit) for limit in (*limits, _UNBOUNDED) if limit)
