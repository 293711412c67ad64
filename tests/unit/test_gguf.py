"""Reading a GGUF file: the traps of other people's converters, each on a small file made here; the cache around it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from tests.children import Child
from tests.small_gguf import CHATML, CONTROL, HIDDEN, WIDE, vocabulary, weight_of, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.templates import build_template
from luthier.errors import ModelError
from luthier.examples import Conversation, Message
from luthier.files import sha256_of
from luthier.models.catalog import ModelFiles, resolve
from luthier.models.gguf import GEMMA_TEMPLATE, convert
from luthier.models.load import load


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def llama(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    gguf = write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", template=CHATML)
    return resolve(str(gguf), say=lambda _: None)


def vocabulary_matrix(noise: float) -> np.ndarray:
    """The embedding with noise of a relative size, or for `noise` above 1 a matrix that has nothing to do with it."""
    rows = len(vocabulary()[0])
    return weight_of(0, rows, HIDDEN) * (noise <= 1) + noise * weight_of(99, rows, HIDDEN)


def test_the_converted_model_is_an_ordinary_one(llama: ModelFiles, tmp_path: Path) -> None:
    """A plain GGUF load stays marked as quantized, and can be neither saved nor trained."""
    loaded = load(llama, precision="float32", device="cpu")
    model: Any = loaded.model
    assert "quantization_config" not in json.loads((llama.folder / "config.json").read_text())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7]])
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_the_weights_are_those_of_the_file(llama: ModelFiles) -> None:
    values = load(llama, precision="float32", device="cpu").model.state_dict()
    stored = quants.dequantize(
        quants.quantize(weight_of(14, WIDE, HIDDEN), GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0
    )
    np.testing.assert_allclose(values["model.layers.0.mlp.gate_proj.weight"].numpy(), stored, rtol=0, atol=1e-7)


def test_digits_stay_apart_as_in_pre_training(llama: ModelFiles) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama.folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi\n 12")["input_ids"]) == ["hi", "ĊĠ", "1", "2"]


def test_the_converter_of_transformers_alone_would_join_them(tmp_path: Path) -> None:
    """Fails when transformers carries the splitter over by itself; then the repair can go."""
    write_gguf(tmp_path / "tiny.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi\n 12")["input_ids"]) != ["hi", "ĊĠ", "1", "2"]


def test_a_matrix_stored_twice_is_tied_to_its_better_copy(tmp_path: Path) -> None:
    output = vocabulary_matrix(0.0)
    write_gguf(tmp_path / "twice.gguf", arch="qwen2", output=output)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "twice.gguf", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    error = float(np.abs(model.lm_head.weight.detach().numpy() - output).max())
    assert error < 0.002, "the eight-bit copy is meant to win, not the four-bit one"


def test_matrices_that_differ_stay_apart(tmp_path: Path) -> None:
    write_gguf(tmp_path / "untied.gguf", arch="qwen2", output=vocabulary_matrix(2.0))
    (tmp_path / "out").mkdir()
    convert(tmp_path / "untied.gguf", tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not model.config.tie_word_embeddings
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_base_model_with_turn_marks_gets_their_template_and_their_end(cache: Path, tmp_path: Path) -> None:
    files = resolve(str(write_gguf(tmp_path / "gemma-like.gguf")), say=lambda _: None)
    loaded = load(files, precision="float32", device="cpu")
    end = CONTROL.index("<end_of_turn>")
    assert loaded.tokenizer.chat_template == GEMMA_TEMPLATE
    assert loaded.stop_ids == {2, end}
    template = build_template(loaded, "model")
    messages = (Message("system", "brief"), Message("user", "hi"), Message("assistant", "yes "))
    (row,) = template.rows(Conversation(messages))
    text = loaded.tokenizer.decode(row.ids)
    assert text.endswith("<start_of_turn>user\nbrief\n\nhi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n")
    assert row.ids.count(loaded.tokenizer.bos_token_id) == 1 and row.ids[0] == loaded.tokenizer.bos_token_id
    trained = [i for i, m in zip(row.ids, row.loss_mask, strict=True) if m]
    assert trained[-1] == end


def test_the_end_is_trained_on_though_it_pads(llama: ModelFiles) -> None:
    loaded = load(llama, precision="float32", device="cpu")
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id == 2
    (row,) = build_template(loaded, "model").rows(Conversation((Message("user", "hi"), Message("assistant", "hi"))))
    assert [i for i, m in zip(row.ids, row.loss_mask, strict=True) if m][-1] == 2


# the cache


def test_it_is_converted_once(llama: ModelFiles, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", template=CHATML)
    said: list[str] = []
    again = resolve(str(gguf), say=said.append)
    assert again.folder == llama.folder and again.fingerprint == llama.fingerprint
    assert said == []
    assert resolve(str(tmp_path), say=said.append).folder == llama.folder, "a folder with one .gguf file works as well"


def test_a_conversion_that_was_cut_off_is_made_anew(cache: Path, tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "cut.gguf", template=CHATML + "{# another file #}")
    first = resolve(str(gguf), say=lambda _: None)
    (first.folder / "manifest.json").unlink()
    (first.folder / "model.safetensors").write_bytes(b"half")
    (first.folder.parent / f".converting-{first.folder.name}-killed").mkdir()
    again = resolve(str(gguf), say=lambda _: None)
    again.verify()
    assert again.fingerprint == first.fingerprint
    assert not list((cache / "models").glob(".converting*"))


def test_a_changed_file_in_the_cache_is_found_at_the_load(cache: Path, tmp_path: Path) -> None:
    files = resolve(str(write_gguf(tmp_path / "bitrot.gguf", template=CHATML + "{# bit rot #}")), say=lambda _: None)
    weights = files.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    times = weights.stat()
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time: only the bytes tell
    with pytest.raises(ModelError, match=r"model.safetensors was changed.*delete the folder"):
        load(resolve(files.name), device="cpu")
    manifest = files.folder / "manifest.json"
    manifest.write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="manifest is damaged"):
        resolve(files.name)


def test_what_is_no_gguf_is_refused(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"GGUF is not what follows" * 10)
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve(str(path), say=lambda _: None)
    assert not list((cache / "models").glob(f"*{sha256_of(path)[:16]}*"))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [("martian", "architecture martian is not supported"), ("llama", "Cannot build a tokenizer")],
)
def test_an_unknown_architecture_or_no_tokenizer_is_refused(
    cache: Path, tmp_path: Path, architecture: str, message: str
) -> None:
    path = tmp_path / "odd.gguf"
    writer = GGUFWriter(str(path), architecture)
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.zeros((32, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=rf"odd\.gguf: .*{message}"):
        resolve(str(path))
    assert not list((cache / "models").glob(f"*{sha256_of(path)[:16]}*"))


@pytest.mark.slow
def test_two_processes_make_it_once(tmp_path: Path) -> None:
    gguf = write_gguf(tmp_path / "tiny.gguf", template=CHATML)
    code = "import sys; from luthier.models.catalog import resolve; f = resolve(sys.argv[1]); f.verify(); "
    code += "print(f.fingerprint)"
    children = [Child(code, gguf, more={"LUTHIER_CACHE": str(tmp_path / "cache")}) for _ in range(2)]
    results = [child.ended(300) for child in children]
    assert [returned for returned, _, _ in results] == [0, 0], results
    assert len({out for _, out, _ in results}) == 1
    assert sum("converting" in err for _, _, err in results) == 1
