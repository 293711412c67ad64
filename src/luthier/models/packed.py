"""Models whose matrices are held quantized: made of a plain folder or of a GGUF file, written, and read again.

Tensors are read one by one, so the dense model is never whole in memory: what is held at the peak is the quantized
model and one matrix. Which matrices: every linear layer but the output head; from a GGUF file all that it holds in
blocks, embeddings and head included.

A folder of ours is a plain one, but for each quantized layer it holds the layer's parts in place of its weight, and
`quantization_config` in config.json says `{"quant_method": "luthier", "format": "nf4"}`.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier import registry
from luthier.errors import ModelError
from luthier.models import heads
from luthier.models.catalog import ModelFiles
from luthier.models.kernels import proof
from luthier.models.quantize.base import Origin, QuantizedEmbedding, QuantizedLinear
from luthier.recipe import QUANTIZERS

METHOD = "luthier"
SHARD_BYTES = 1 << 30


def quantizer(name: str) -> type[QuantizedLinear]:
    """The kind of layer that `model.quantize` names.

    Raises:
        RecipeError: there is none of this name.
    """
    return registry.load_class(QUANTIZERS, name, QuantizedLinear)  # type: ignore[type-abstract]


def quantized_layers(model: nn.Module) -> list[QuantizedLinear]:
    """All layers of a model that hold their matrix in fewer bits; those that hold the same one count once."""
    found = {m.get_buffer(next(iter(m.parts))).data_ptr(): m for m in model.modules() if isinstance(m, QuantizedLinear)}
    return list(found.values())


def load_packed(files: ModelFiles, dtype: torch.dtype, name: str) -> Any:
    """The model of a folder, on the CPU, with its matrices quantized.

    Raises:
        ModelError: a tensor is missing, left over, of another shape or not finite; or the model has no GGUF file.
        RecipeError: there is no format of this name.
    """
    kind = quantizer(name)
    proof.require()
    config = _config(files.folder)
    stored = Stored(files)
    if vars(config).pop("quantization_config", None) is not None:
        model = empty_model(config, dtype)
        _fill_layers(model, lambda layer, linear: _read_parts(kind, stored, layer, linear, dtype))
    elif kind.from_file:
        from luthier.models.gguf_blocks import Blocks

        model = empty_model(config, dtype)
        Blocks(files, model, stored).fill(model, dtype)
    else:
        model = empty_model(config, dtype)
        _fill_layers(model, lambda layer, linear: _pack(kind, stored, layer, linear, dtype))
    _fill_rest(model, stored, dtype)
    return model


class Stored:
    """The tensors of a model folder, by name; a file is open only while one is read, so no mapping outlives it."""

    def __init__(self, files: ModelFiles) -> None:
        """Raises ModelError: a file is damaged."""
        self.what = files.name
        self.left: dict[str, Path] = {}
        for path in sorted(files.folder.glob("*.safetensors")):
            if path.name == heads.FILE:  # beside a model that was trained as a whole, and no part of it
                continue
            with _opened(path) as file:
                self.left |= dict.fromkeys(file.keys(), path)

    def take(self, name: str, shape: torch.Size) -> Tensor:
        """A tensor that must be there with this shape, and is then no longer `left`.

        Raises:
            ModelError: it is not there, or of another shape.
        """
        path = self.left.pop(name, None)
        if path is None:
            raise ModelError(f"{self.what}: 1 missing keys in its weights: {name}; {_TWO_MODELS}")
        with _opened(path) as file:
            tensor: Tensor = file.get_tensor(name)
        if tensor.shape != shape:
            found, wanted = tuple(tensor.shape), tuple(shape)
            raise ModelError(f"{self.what}: {name} has shape {found}, its config.json says {wanted}; {_TWO_MODELS}")
        return tensor

    def row(self, name: str, row: int) -> Tensor:
        """One row of a matrix that is still `left`."""
        with _opened(self.left[name]) as file:
            found: Tensor = file.get_slice(name)[row : row + 1][0]
            return found

    def parts(self, layer: str) -> dict[str, Tensor]:
        """The tensors of a quantized layer but its bias, no longer `left`."""
        names = [name for name in self.left if name.rpartition(".")[0] == layer and not name.endswith(".bias")]
        found = {}
        for name in names:
            with _opened(self.left.pop(name)) as file:
                found[name.rpartition(".")[2]] = file.get_tensor(name).clone()
        return found


_TWO_MODELS = "config.json and weights do not belong together, or the download is incomplete"


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file that can be read: {error}") from None


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True)


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """A model whose parameters hold nothing yet; the tables that it computes, such as rotary angles, are there."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """What is quantized: all plain linear layers but the output head."""
    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if type(m) is nn.Linear and m is not head}


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent).register_module(last, new)


def make_dense(model: Any) -> None:
    """Put dense layers of the same numbers in the place of quantized ones, in the type of their products."""
    expanded = isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    for kind in (QuantizedEmbedding, QuantizedLinear):  # an embedding holds its blocks in a layer
        for name, module in list(model.named_modules()):
            if isinstance(module, kind):
                replace(model, name, module.to_dense())
    if expanded and model.config.tie_word_embeddings:  # head and embedding were made dense one by one
        model.get_output_embeddings().weight = model.get_input_embeddings().weight


def _fill_layers(model: Any, make: Any) -> None:
    for name, linear in linear_layers(model).items():
        replace(model, name, make(name, linear))


def _bias(stored: Stored, layer: str, linear: nn.Linear) -> Tensor | None:
    return None if linear.bias is None else stored.take(f"{layer}.bias", linear.bias.shape).clone()


def _pack(
    kind: type[QuantizedLinear], stored: Stored, layer: str, linear: nn.Linear, dtype: torch.dtype
) -> QuantizedLinear:
    shape, name = (linear.out_features, linear.in_features), f"{layer}.weight"
    origin = Origin(stored.left[name], name) if name in stored.left else None
    try:
        parts = kind.pack(stored.take(name, linear.weight.shape))
    except ModelError as error:
        raise ModelError(f"{stored.what}, {layer}: {error}") from None
    made = kind(shape, parts, _bias(stored, layer, linear), dtype)
    made.origin = origin
    return made


def _read_parts(
    kind: type[QuantizedLinear], stored: Stored, layer: str, linear: nn.Linear, dtype: torch.dtype
) -> QuantizedLinear:
    shape = linear.out_features, linear.in_features
    return kind(shape, stored.parts(layer), _bias(stored, layer, linear), dtype)


def _fill_rest(model: Any, stored: Stored, dtype: torch.dtype) -> None:
    """Everything that is not quantized: embeddings, norms, head."""
    every = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        if not parameter.is_meta:
            continue
        owner, _, last = name.rpartition(".")
        held = stored.take(name, parameter.shape).to(dtype, copy=True)
        model.get_submodule(owner).register_parameter(last, nn.Parameter(held, requires_grad=False))
        for other, same in every.items():  # tied: one tensor under several names, which a file may hold twice
            if same is parameter and other != name:
                stored.left.pop(other, None)
    if isinstance(model.get_input_embeddings(), nn.Embedding):  # a quantized one is tied by the layer that it shares
        model.tie_weights()
    empty = [name for name, p in model.named_parameters() if p.is_meta]
    if empty or stored.left:
        what, names = ("missing", empty) if empty else ("unexpected", sorted(stored.left))
        listed = ", ".join(names[:3])
        raise ModelError(f"{stored.what}: {len(names)} {what} keys in its weights, such as {listed}; {_TWO_MODELS}")


def write_packed(folder: Path, config: Any, tensors: Iterable[tuple[str, Tensor]], name: str) -> None:
    """Write a model as a quantized folder (without tokenizer), from dense tensors that are given one after another.

    Args:
        folder: made if need be.
        config: the transformers configuration of the model.
        tensors: every tensor of the model once, with its name.
        name: the format, as `model.quantize` names it.

    Raises:
        ModelError: a matrix cannot be held in the format.
        RecipeError: there is no format of this name.
    """
    kind = quantizer(name)
    proof.require()
    folder.mkdir(parents=True, exist_ok=True)
    layers = linear_layers(empty_model(config, torch.bfloat16))
    places: dict[str, str] = {}
    for number, shard in enumerate(_shards(kind, layers, tensors)):
        file = f"model-{number + 1:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    index = json.dumps({"metadata": {}, "weight_map": places}, indent=1)
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    config.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["quantization_config"] = {"quant_method": METHOD, "format": name}
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")


def _shards(
    kind: type[QuantizedLinear], layers: dict[str, nn.Linear], tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        layer, _, last = name.rpartition(".")
        quantized = layer in layers and last == "weight"
        made = {f"{layer}.{part}": t for part, t in kind.pack(tensor).items()} if quantized else {name: tensor}
        shard |= {key: value.contiguous() for key, value in made.items()}
        size += sum(value.numel() * value.element_size() for value in made.values())
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard
