"""Whole models over a quantized base: loaded without ever being dense, trained, resumed, written, and refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from tests.engine_runs import make_run, tiny_llama
from tests.quantized import dequantized, quantize
from tests.small_gguf import CHATML, vocabulary, weight_of, write_gguf

from luthier import assemble
from luthier.adapters.lora import LoRA
from luthier.config import build
from luthier.engine import checkpoint
from luthier.engine.loop import train
from luthier.errors import ModelError, RecipeError
from luthier.models.catalog import ModelFiles, resolve
from luthier.models.generate import generate
from luthier.models.gguf_blocks import takes_blocks
from luthier.models.kernels.decoder import computes
from luthier.models.load import load, open_without_weights
from luthier.models.memory import held_bytes, loading_bytes, shape_of
from luthier.models.packed import linear_layers, quantized_layers, write_packed
from luthier.models.quantize.gguf import GGUFEmbedding, GGUFLinear
from luthier.models.quantize.nf4 import NF4Linear
from luthier.recipe import Recipe


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder))
        yield folder


def quiet(_: str) -> None:
    """Say nothing."""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 40)[None]).logits
    return found


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_a_folder_is_loaded_quantized_but_for_head_and_embeddings(name: str, tiny_model_folder: Path) -> None:
    files = resolve(str(tiny_model_folder))
    plain = load(files, precision="float32", device="cpu")
    loaded = load(files, precision="float32", device="cpu", quantize=name)
    model: Any = loaded.model
    assert len(quantized_layers(model)) == 14 and loaded.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training and all(not p.is_meta for p in model.parameters())
    assert loaded.stop_ids == plain.stop_ids and loaded.max_tokens == plain.max_tokens
    wanted = quantize(plain.model, name)
    assert torch.equal(logits(loaded.model), logits(wanted))
    assert torch.equal(logits(loaded.model), logits(dequantized(wanted)))


def test_generation_and_the_kernels_work_over_quantized_layers(tiny_model_folder: Path) -> None:
    loaded = load(resolve(str(tiny_model_folder)), precision="float32", device="cpu", quantize="nf4")
    wanted = replace(loaded, model=dequantized(loaded.model))
    assert computes(loaded.model) == computes(wanted.model)
    prompts = [[5, 6, 7], [5, 6, 9, 11]]
    found, right = (generate(each, prompts, stop_ids=frozenset(), max_new_tokens=8) for each in (loaded, wanted))
    assert found == right


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_a_gguf_file_is_trained_over_as_it_lies(arch: str, cache: Path, tmp_path: Path) -> None:
    """A llama's query and key rows lie in another order there; the tied matrix is stored twice in the other file."""
    output = weight_of(0, len(vocabulary()[0]), 64) if arch == "qwen2" else None
    path = write_gguf(tmp_path / f"{arch}.gguf", arch=arch, template=CHATML, output=output)
    files = resolve(str(path), say=quiet)
    plain = load(files, precision="float32", device="cpu")
    model: Any = load(files, precision="float32", device="cpu", quantize="gguf").model
    assert isinstance(model.get_input_embeddings(), GGUFEmbedding) and isinstance(model.lm_head, GGUFLinear)
    assert model.get_input_embeddings().linear is model.lm_head and len(quantized_layers(model)) == 15
    kind = int(model.lm_head.get_buffer("kind"))
    assert kind == (GGMLQuantizationType.Q8_0 if output is not None else GGMLQuantizationType.Q4_0)
    torch.testing.assert_close(logits(model), logits(plain.model), rtol=1e-5, atol=1e-6)
    for name, linear in linear_layers(plain.model).items():
        assert torch.equal(model.get_submodule(name).dense(torch.float32), linear.weight), name
    assert held_bytes(model) < held_bytes(plain.model) / 3
    injected = LoRA(rank=2).inject(model, seed=0)
    assert len(injected.layers) == 14, "the head trains no more than it does dense"


def test_two_matrices_of_the_vocabulary_stay_two(cache: Path, tmp_path: Path) -> None:
    other = weight_of(99, len(vocabulary()[0]), 64)
    files = resolve(str(write_gguf(tmp_path / "untied.gguf", "qwen2", CHATML, other)), say=quiet)
    plain = load(files, precision="float32", device="cpu")
    model = load(files, precision="float32", device="cpu", quantize="gguf").model
    assert len(quantized_layers(model)) == 16
    torch.testing.assert_close(logits(model), logits(plain.model), rtol=1e-5, atol=1e-6)


def test_an_embedding_that_does_more_than_look_up_stays_as_it_is() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    assert not takes_blocks(Gemma3TextScaledWordEmbedding(8, 4, 0, embed_scale=2.0))
    assert takes_blocks(torch.nn.Embedding(8, 4)) and takes_blocks(torch.nn.Linear(4, 8))


def test_gguf_without_its_file_is_refused(cache: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"is no .gguf file but local folder .*nf4 or int8"):
        load(resolve(str(tiny_model_folder)), device="cpu", quantize="gguf")
    path = write_gguf(tmp_path / "gone.gguf", template=CHATML)
    files = resolve(str(path), say=quiet)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ModelError, match=r"gone.gguf, from which .* was made, is gone or was changed"):
        load(files, device="cpu", quantize="gguf")


def test_blocks_that_are_not_known_are_refused_by_their_name(cache: Path, tmp_path: Path) -> None:
    """IQ4_NL: 32 numbers in 18 bytes, the first two of them a scale."""
    blocks = np.random.default_rng(0).integers(0, 256, (len(vocabulary()[0]), 2, 18), dtype=np.uint8)
    blocks[..., 1] &= 0x1F
    path = write_gguf(tmp_path / "odd.gguf", template=CHATML, embedding=blocks.reshape(len(blocks), 36))
    with pytest.raises(ModelError, match=r"embed_tokens.weight is held as IQ4_NL, which cannot be trained over"):
        load(resolve(str(path), say=quiet), device="cpu", quantize="gguf")


LOAD = """
import sys
from luthier.models.catalog import resolve
from luthier.models.load import load
from luthier.models.memory import held_bytes, peak_memory_bytes
files = resolve(sys.argv[1])
import torch, accelerate, transformers, luthier.models.quantize.nf4
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
load(files, precision="bfloat16", device="cpu", verify=False, quantize=sys.argv[3])
before = peak_memory_bytes(torch.device("cpu"))
loaded = load(resolve(sys.argv[2]), precision="bfloat16", device="cpu", quantize=sys.argv[3])
print(peak_memory_bytes(torch.device("cpu")) - before, held_bytes(loaded.model))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_the_dense_model_is_never_whole_in_memory(stored: torch.dtype, tiny_model_folder: Path, tmp_path: Path) -> None:
    """A second process loads 96 layers of 2 million numbers: it needs the quantized model and a few matrices."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((tiny_model_folder / "config.json").read_text(encoding="utf-8"))
    sizes = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 8}
    made = LlamaForCausalLM(LlamaConfig(**{**config, **sizes, "num_key_value_heads": 8, "head_dim": 128})).to(stored)
    dense = 2 * sum(p.numel() for p in made.parameters())
    made.save_pretrained(tmp_path / "wide")
    del made
    for path in tiny_model_folder.glob("*token*"):
        (tmp_path / "wide" / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "-c", LOAD, str(tiny_model_folder), str(tmp_path / "wide"), "nf4"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    grown, held = map(int, done.stdout.split())
    assert dense > 450e6 and held < 0.27 * dense
    assert grown < held + 60e6 < 0.45 * dense


def test_a_quantized_folder_is_written_and_read(tiny_model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoConfig

    folder = tmp_path / "packed"
    tensors = load_file(tiny_model_folder / "model.safetensors")
    write_packed(folder, AutoConfig.from_pretrained(tiny_model_folder), tensors.items(), "nf4")
    for path in (*tiny_model_folder.glob("*token*"), tiny_model_folder / "generation_config.json"):
        (folder / path.name).write_bytes(path.read_bytes())
    files = resolve(str(folder))
    with pytest.raises(ModelError, match=r"stored as nf4; set model.quantize = 'nf4'"):
        load(files, device="cpu")
    with pytest.raises(ModelError, match=r"stored as nf4; set model.quantize = 'nf4'"):
        load(files, device="cpu", quantize="int8")
    read = load(files, precision="float32", device="cpu", quantize="nf4")
    made = load(resolve(str(tiny_model_folder)), precision="float32", device="cpu", quantize="nf4")
    assert torch.equal(logits(read.model), logits(made.model))
    model: Any = read.model
    assert "quantization_config" not in model.config.to_dict()
    assert open_without_weights(files).max_tokens == read.max_tokens
    (shard,) = folder.glob("*.safetensors")
    assert shard.stat().st_size < 0.5 * (tiny_model_folder / "model.safetensors").stat().st_size


def test_weights_that_are_missing_left_over_or_of_another_shape_are_refused(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    layer, norm = "model.layers.1.mlp.up_proj.weight", "model.norm.weight"
    for name in (layer, norm):
        save_file({n: w for n, w in weights.items() if n != name}, folder / "model.safetensors")
        with pytest.raises(ModelError, match=f"missing keys in its weights.*{name}"):
            load(resolve(str(folder)), device="cpu", quantize="nf4")
    save_file({**weights, "model.other.weight": weights[norm].clone()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"1 unexpected keys in its weights, such as model.other.weight"):
        load(resolve(str(folder)), device="cpu", quantize="int8")
    save_file({**weights, layer: weights[layer][:, :32].clone()}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"has shape \(128, 32\), its config.json says \(128, 64\)"):
        load(resolve(str(folder)), device="cpu", quantize="nf4")
    save_file({**weights, layer: weights[layer] * float("nan")}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"layers.1.mlp.up_proj: .*not finite"):
        load(resolve(str(folder)), device="cpu", quantize="nf4")


# training


def over_nf4(**options: Any) -> Any:
    return quantize(tiny_llama(**options), "nf4")


def over_the_same_numbers(**options: Any) -> Any:
    return dequantized(over_nf4(**options))


def test_training_over_nf4_learns_as_over_the_same_numbers_held_dense(tmp_path: Path) -> None:
    losses = []
    for number, base in enumerate((over_nf4, over_the_same_numbers)):
        settings = {"steps": 30, "rows_per_step": 4, "patience": 100}
        run = make_run(tmp_path / str(number), base=base, training=settings)
        losses.append([step.metrics["loss"] for step in train(run)])
        assert len(quantized_layers(run.model)) == (14 if base is over_nf4 else 0)
    assert losses[0] == losses[1]
    assert sum(losses[0][-3:]) / 3 < sum(losses[0][:3]) / 3 - 0.3


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_resumed_run_over_nf4_ends_with_bit_identical_weights(dropout: float, tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "base": over_nf4,
        "adapter": {"type": "lora", "dropout": dropout},
        "training": {"steps": 6, "rows_per_step": 4, "save_every": 1, "patience": 100},
    }
    whole = make_run(tmp_path / "whole", **tables)
    list(train(whole))
    for step in train(make_run(tmp_path / "parts", **tables)):
        if step.number == 3:
            break
    torch.manual_seed(123)  # another process has other random numbers
    second = make_run(tmp_path / "parts", **tables)
    found = checkpoint.latest(second.checkpoints)
    assert found is not None and found.step == 3
    checkpoint.restore(second, found.folder)
    list(train(second))
    mine, wanted = second.injected.trainable, whole.injected.trainable
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted)


# settings


def recipe(**tables: Any) -> Recipe:
    return build(Recipe, {"data": {"train": "rows.jsonl"}, **tables})


def test_the_setting_is_part_of_the_recipe_and_what_it_hashes_to() -> None:
    assert recipe().model.quantize == "none"
    hashes = {recipe(model={"quantize": name}).hash() for name in ("none", "nf4", "int8", "gguf")}
    assert len(hashes) == 4 and recipe(model={"quantize": "nf4"}).dump()["model"]["quantize"] == "nf4"
    with pytest.raises(RecipeError, match=r"model.quantize: unknown format 'nf5'.*nf4"):
        recipe(model={"quantize": "nf5"})


def test_full_fine_tuning_over_a_quantized_base_is_refused_before_anything_is_loaded() -> None:
    asked = recipe(model={"quantize": "nf4", "name": "no-such-model"}, adapter={"type": "full"})
    with pytest.raises(RecipeError, match=r"model.quantize = 'nf4' .* adapter.type = 'full' trains it"):
        assemble.open_model(asked)


def test_a_recipe_opens_its_base_quantized(tiny_model_folder: Path) -> None:
    loaded = assemble.open_model(recipe(model={"name": str(tiny_model_folder), "quantize": "int8"}))
    assert len(quantized_layers(loaded.model)) == 14


# memory


def test_predicted_weights_are_the_bytes_that_are_held(make_tiny: Callable[..., Any]) -> None:
    model = make_tiny().model
    dense = shape_of(model)
    quantize(model, "nf4")
    shape = shape_of(model)
    assert shape.parameters == dense.parameters and shape.quantized == sum(
        m.in_features * m.out_features for m in model.modules() if isinstance(m, NF4Linear)
    )
    assert shape.feed_forward == dense.feed_forward
    rest = shape.parameters - shape.quantized
    assert held_bytes(model) == 4 * rest + shape.quantized_bytes
    assert loading_bytes(dense, torch.float32, 4 * dense.parameters + 900) == 4 * dense.parameters, "mapped"
    assert loading_bytes(dense, torch.float32, 1000) == 1000 + 4 * dense.parameters
    assert loading_bytes(shape, torch.float32, 10**9) < 4 * dense.parameters * 2


def test_the_files_of_a_gguf_model_name_it(cache: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "named.gguf", template=CHATML)
    files: ModelFiles = resolve(str(path), say=quiet)
    assert files.source == path.resolve() and len(files.source_sha256) == 64
