"""What the tests of exports share: trained tiny runs, and ways to break an artifact."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind, GGUFReader, quants
from safetensors import torch as torch_file
from safetensors.numpy import load_file, save_file

Damage = Callable[[Path], None]


def in_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def in_bytes(path: Path, old: bytes, new: bytes) -> None:
    """Replace the first occurrence by bytes of the same length, so that every offset in the file stays right."""
    content = path.read_bytes()
    assert len(old) == len(new) and old in content
    path.write_bytes(content.replace(old, new, 1))


def four_bit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What is left of a matrix that went through 4-bit blocks."""
    wide = np.ascontiguousarray(values, dtype=np.float32)
    kept: np.ndarray[Any, Any] = quants.dequantize(quants.quantize(wide, Kind.Q4_0), Kind.Q4_0).astype(values.dtype)
    return kept


def in_safetensors(path: Path, change: Callable[[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    tensors = {name: change(name, values) for name, values in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def in_gguf(path: Path, change: Callable[[str, np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
    for tensor in GGUFReader(path, "r+").tensors:
        tensor.data[:] = change(tensor.name, np.array(tensor.data))


# what breaks a folder that transformers opens


def edit_template(folder: Path) -> None:
    in_bytes(folder / "chat_template.jinja", b"assistant", b"assistent")


def drop_end_of_turn(folder: Path) -> None:
    in_json(folder / "generation_config.json", lambda values: values.pop("eos_token_id"))


def zero_a_tensor(folder: Path) -> None:
    in_safetensors(
        folder / "model.safetensors",
        lambda name, v: np.zeros_like(v) if name.endswith("layers.1.mlp.up_proj.weight") else v,
    )


def quantize_again(folder: Path) -> None:
    in_safetensors(folder / "model.safetensors", lambda _, v: four_bit(v) if v.ndim == 2 else v)


def zero_the_adapter(folder: Path) -> None:
    in_safetensors(
        folder / "adapter_model.safetensors",
        lambda name, v: np.zeros_like(v) if "layers.1.mlp.up_proj.lora_B" in name else v,
    )


def zero_some_codes(folder: Path) -> None:
    path = folder / "model-00001.safetensors"
    tensors = torch_file.load_file(path)  # numpy has no bfloat16, in which all but the codes is held
    tensors["model.layers.1.mlp.up_proj.codes"].zero_()
    torch_file.save_file(tensors, path, metadata={"format": "pt"})


# what breaks a GGUF file


def edit_gguf_template(folder: Path) -> None:
    in_bytes(folder / "model.gguf", b"<|im_start|>assistant", b"<|im_start|>assistent")


def drop_gguf_end_of_turn(folder: Path) -> None:
    for name, other in ((b"eos", b"xxs"), (b"eot", b"xxt")):
        in_bytes(folder / "model.gguf", b"tokenizer.ggml.%s_token_id" % name, b"tokenizer.ggml.%s_token_id" % other)


def zero_a_gguf_tensor(folder: Path) -> None:
    in_gguf(folder / "model.gguf", lambda name, v: np.zeros_like(v) if name == "blk.1.ffn_up.weight" else v)


def quantize_gguf_again(folder: Path) -> None:
    in_gguf(folder / "model.gguf", lambda _, v: four_bit(v) if v.dtype == np.float16 else v)


def edit_modelfile(folder: Path) -> None:
    in_bytes(folder / "Modelfile", b"<|im_start|>assistant", b"<|im_start|>assistent")


def drop_modelfile_stop(folder: Path) -> None:
    path = folder / "Modelfile"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if "PARAMETER stop" not in line), encoding="utf-8")
