"""A folder becomes a model: number format, device, stop tokens, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models.catalog import resolve
from luthier.models.load import bfloat16_speedup, choose_device, choose_dtype, load
from luthier.models.processor import features


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def edit_json(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**values, **changes}), encoding="utf-8")


def test_a_model_is_loaded_as_it_is(folder: Path) -> None:
    loaded = load(resolve(str(folder)), precision="float32", device="cpu")
    assert loaded.dtype == torch.float32 and loaded.device == torch.device("cpu")
    assert loaded.max_tokens == 1024 and not loaded.model.training
    stored = load_file(folder / "model.safetensors")
    values = loaded.model.state_dict()
    assert all(torch.equal(values[name], tensor) for name, tensor in stored.items())
    assert load(resolve(str(folder)), precision="bfloat16", device="cpu").model.dtype == torch.bfloat16


def test_the_global_random_state_is_left_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load(resolve(str(folder)), device="cpu")
    assert torch.equal(torch.rand(3), expected)


def test_files_changed_between_resolving_and_loading_are_found(folder: Path) -> None:
    files = resolve(str(folder))
    edit_json(folder / "config.json", rope_theta=1.0)
    with pytest.raises(ModelError, match=r"config.json was changed"):
        load(files, device="cpu")
    assert load(files, device="cpu", verify=False).model is not None


# stop tokens


def test_stop_ids_are_the_union_of_what_the_model_says(folder: Path) -> None:
    loaded = load(resolve(str(folder)), device="cpu")
    end_of_text, start, end = (
        loaded.tokenizer.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    )
    assert loaded.stop_ids == {end}
    edit_json(folder / "generation_config.json", eos_token_id=[end_of_text, end])
    assert load(resolve(str(folder)), device="cpu").stop_ids == {end_of_text, end}
    edit_json(folder / "generation_config.json", eos_token_id=end_of_text)
    edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    stops = load(resolve(str(folder)), device="cpu").stop_ids
    assert stops == {end_of_text, end}, "the template's own end of turn counts, whatever the configuration says"
    assert start not in stops


def test_a_broken_template_does_not_stop_the_load(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}", encoding="utf-8")
    assert len(load(resolve(str(folder)), device="cpu").stop_ids) == 1


def test_the_longest_sequence_is_the_smaller_of_both_limits(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", model_max_length=77)
    assert load(resolve(str(folder)), device="cpu").max_tokens == 77


# number format and device


def test_auto_takes_bfloat16_only_where_it_is_faster() -> None:
    speedup = bfloat16_speedup()
    assert speedup > 0 and bfloat16_speedup() == speedup, "measured once in a process"
    told = bool({"avx512_bf16", "amx_bf16"} & features()) if "sse2" in features() else speedup >= 1.5
    assert choose_dtype("auto", torch.device("cpu")) == (torch.bfloat16 if told else torch.float32)
    assert choose_dtype("auto", torch.device("mps")) == torch.float32
    with pytest.raises(ModelError, match="float16"):
        choose_dtype("float16", torch.device("cpu"))


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == best
    with pytest.raises(ModelError, match="no device"):
        choose_device("gpu")
    with pytest.raises(ModelError, match="this machine has"):
        choose_device("cuda:99")
    with pytest.raises(ModelError, match="this machine has 0"):
        choose_device("xla")


# refusals


def rewrite_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_weight_is_not_made_up(folder: Path) -> None:
    rewrite_weights(folder, lambda t: t.__delitem__("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 missing keys .*model.layers.1.mlp.up_proj.weight"):
        load(resolve(str(folder)), device="cpu")


def test_a_weight_too_many_is_not_dropped(folder: Path) -> None:
    rewrite_weights(folder, lambda t: t.update(extra=torch.zeros(2)))
    with pytest.raises(ModelError, match=r"1 unexpected keys .*extra"):
        load(resolve(str(folder)), device="cpu")


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    rewrite_weights(folder, lambda t: t.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load(resolve(str(folder)), device="cpu")


def test_a_truncated_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(resolve(str(folder)), device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "evil.Model"}}, "code from a model is never run"),
        ({"is_encoder_decoder": True, "model_type": "t5"}, r"encoder-decoder model \(t5\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"stored quantized \(gptq\)"),
        ({"model_type": "nonsense"}, "nonsense"),
    ],
)
def test_kinds_of_model_that_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        load(resolve(str(folder)), device="cpu")


def test_a_quantization_that_the_configuration_leaves_empty_is_none(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config=None)
    load(resolve(str(folder)), device="cpu")


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_damaged_configuration_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json"):
        load(resolve(str(folder)), device="cpu")


def test_a_tokenizer_of_another_model_is_refused(folder: Path, tiny_loaded: Any) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    last = max(tokenizer["model"]["vocab"].values())
    more = {"content": "<more>", "id": last + 1, "special": True}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer["added_tokens"].append({**more, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(ModelError, match="embeds only"):
        load(resolve(str(folder)), device="cpu")


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load(resolve(str(folder)), device="cpu")
