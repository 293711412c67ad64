"""Exports of tiny trained runs: whole ones pass the gate in real programs, and one broken on purpose is refused."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import exporting as broken
from tests.integration.test_run import RECIPE, write_rows
from tests.small_gguf import CHATML, write_gguf
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from luthier import registry
from luthier.assemble import Trained
from luthier.cli.main import main
from luthier.errors import DataError, ExportError
from luthier.export.formats.base import Exporter
from luthier.export.make import FORMATS, build_exporter, export, open_float32, prove
from luthier.models import packed
from luthier.models.catalog import resolve
from luthier.progress import Silent

EVERY_ONE = pytest.mark.exports
ALL = [
    ("safetensors", None),  # the type of the training
    ("safetensors", "bfloat16"),
    ("safetensors", "float16"),
    ("safetensors", "float32"),
    ("peft", None),
    ("gguf", "f16"),
    ("gguf", "bf16"),
    ("gguf", "q8_0"),
    ("gguf", "q4_k_m"),
    ("ollama", "q8_0"),
    ("packed", "nf4"),
    ("packed", "int8"),
]
BREAKS: list[tuple[str, str | None, broken.Damage, str]] = [
    ("safetensors", "float32", broken.edit_template, "rendered prompts"),
    ("safetensors", "float32", broken.drop_end_of_turn, "ends of a turn"),
    ("safetensors", "float32", broken.zero_a_tensor, "log-probabilities"),
    ("safetensors", "float32", broken.quantize_again, "log-probabilities"),
    ("peft", None, broken.edit_template, "rendered prompts"),
    ("peft", None, broken.drop_end_of_turn, "ends of a turn"),
    ("peft", None, broken.zero_the_adapter, "log-probabilities"),
    ("gguf", "f16", broken.edit_gguf_template, "rendered prompts"),
    ("gguf", "f16", broken.drop_gguf_end_of_turn, "ends of a turn"),
    ("gguf", "f16", broken.zero_a_gguf_tensor, "log-probabilities"),
    ("gguf", "f16", broken.quantize_gguf_again, "log-probabilities"),
    ("gguf", "q8_0", broken.zero_a_gguf_tensor, "log-probabilities"),
    ("ollama", "f16", broken.edit_modelfile, "other files"),
    ("ollama", "f16", broken.drop_modelfile_stop, "other files"),
    ("packed", "int8", broken.edit_template, "rendered prompts"),
    ("packed", "int8", broken.zero_some_codes, "log-probabilities"),
]
KEPT = [("safetensors", None), ("peft", None), ("gguf", "q8_0")]
"""Of each program one; `make exports` reopens the others."""
KEPT_BREAKS = [BREAKS[2], BREAKS[4], BREAKS[8]]
"""Of each thing that is compared one."""


def others_apart(cases: Sequence[Any], kept: Sequence[Any]) -> list[Any]:
    """The cases, those that are not kept marked as slow ones of a suite of their own."""
    return [case if case in kept else pytest.param(*case, marks=EVERY_ONE) for case in cases]


def train(folder: Path, model: Path, *assignments: str, change: Callable[[str], str] = str) -> Path:
    """A trained run on the model; `change` edits the text of its file of rows."""
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.jsonl"
    write_rows(rows)
    rows.write_text(change(rows.read_text(encoding="utf-8")), encoding="utf-8")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model, steps=12).replace("max_new_tokens = 4", "max_new_tokens = 24"))
    out = folder / "run"
    words = [word for a in assignments for word in ("--set", a)]
    assert main(["train", str(recipe), "--out", str(out), *words]) == 0
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    return train(tmp_path_factory.mktemp("export"), tiny_model_folder)


@pytest.fixture(scope="module")
def exported(run: Path) -> dict[tuple[str, str | None], Path]:
    """Artifacts by format and type, made when they are asked for first."""
    return {}


def made(exported: dict[tuple[str, str | None], Path], run: Path, format: str, type: str | None) -> Path:
    if (format, type) not in exported:
        need(format)
        out = run.parent / f"{format}-{type}"
        export(run, build_exporter(format, type), out, Silent())
        exported[format, type] = out
    return exported[format, type]


def need(format: str) -> None:
    """Skip where the program that opens the format is not installed."""
    for package in {"peft": ["peft"], "gguf": ["xllamacpp", "libgguf"], "ollama": ["xllamacpp"]}.get(format, []):
        pytest.importorskip(package)


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_format_and_type_is_tried() -> None:
    for format in registry.names(FORMATS):
        offered = set(build_exporter(format).types)
        tried = {type for name, type in ALL if name == format}
        assert tried and (format == "ollama" or offered <= tried), format


@pytest.mark.parametrize(("format", "type"), others_apart(ALL, KEPT))
def test_every_format_passes_the_gate_and_says_so(
    format: str, type: str | None, run: Path, exported: dict[tuple[str, str | None], Path]
) -> None:
    out = made(exported, run, format, type)
    parity = load(out / "parity.json")
    assert parity["passed"] and all(check["passed"] for check in parity["checks"])
    assert parity["probes"]["rows"] == parity["probes"]["of"] > 0 and parity["tokens"] > 0
    assert parity["files"].keys() == {path.name for path in out.iterdir()} - {"parity.json", "README.md"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "tiny-llama" in card and parity["program"] in card and str(run) not in card


@pytest.mark.parametrize(("format", "type", "damage", "check"), others_apart(BREAKS, KEPT_BREAKS))
def test_an_artifact_that_was_broken_is_refused_by_name(
    format: str,
    type: str | None,
    damage: broken.Damage,
    check: str,
    run: Path,
    exported: dict[tuple[str, str | None], Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(made(exported, run, format, type), tmp_path / "artifact")
    damage(folder)
    failed = [found.check for found in prove(run, build_exporter(format, type), folder, Silent()).failed]
    assert any(name.startswith(check) for name in failed), failed


def test_a_truncated_file_is_refused_with_what_the_program_said(
    run: Path, exported: dict[tuple[str, str | None], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(made(exported, run, "safetensors", "float32"), tmp_path / "artifact")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ExportError, match="could not be opened in a fresh process"):
        prove(run, build_exporter("safetensors", "float32"), folder, Silent())


class Careless(Exporter):
    """Writes a whole folder and then breaks it, as a converter with a fault would."""

    reloads_with = "luthier.export.reload_transformers"

    def __init__(self) -> None:
        super().__init__()
        self._whole = build_exporter("safetensors", "float32")

    def require(self, trained: Trained) -> None:
        self._whole.require(trained)

    def write(self, trained: Trained, folder: Path) -> None:
        self._whole.write(trained, folder)
        broken.zero_a_tensor(folder)

    def rounded(self, trained: Trained, name: str, weight: Tensor) -> Tensor:
        return self._whole.rounded(trained, name, weight)

    def stop_ids(self, trained: Trained) -> frozenset[int]:
        return self._whole.stop_ids(trained)


def test_a_refused_export_leaves_nothing_that_looks_finished(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not the trained model:\n  log-probabilities"):
        export(run, Careless(), tmp_path / "out", Silent())
    assert list(tmp_path.iterdir()) == []


@EVERY_ONE
def test_a_refused_export_can_be_kept_under_another_name(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"out\.failed has what was written"):
        export(run, Careless(), tmp_path / "out", Silent(), keep_failed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]
    parity = load(tmp_path / "out.failed/parity.json")
    assert not parity["passed"] and not all(check["passed"] for check in parity["checks"])


def test_nothing_is_written_over(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_verb_prints_what_the_gate_found(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert main(["export", str(run), "--format", "safetensors", "--rows", "2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "2 of 4 test rows" in printed
    assert "transformers" in printed and "artifact to trained" in printed and printed.endswith(f"{out}\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "safetensor"], "unknown format 'safetensor'; did you mean 'safetensors'?"),
        (["--format", "safetensors", "--type", "q8_0"], "does not write it; expected one of bfloat16"),
        (["--format", "peft", "--type", "f16"], "it has no types to choose from"),
        (["--format", "peft", "--rows", "0"], "at least one test row"),
        (["--format", "safetensors", "--least-kept", "0.5"], "measures nothing"),
        (["--format", "packed", "--least-kept", "1.5"], "a share between 0 and 1"),
        (["--format", "packed", "--type", "gguf"], "expected one of int8, nf4"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_read(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path / "none"), *words, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_not_those_of_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    rows = copy / "data/test.jsonl"
    rows.write_text(rows.read_text().replace("Main", "Moon"))
    with pytest.raises(DataError, match="not what the run wrote"):
        export(copy, build_exporter("safetensors"), tmp_path / "out", Silent())


@EVERY_ONE
def test_a_fully_trained_model_is_exported_whole_and_has_no_adapter(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, tiny_model_folder, "adapter.type=full", "optimizer.learning_rate=1e-3")
    assert main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    assert main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "peft")]) == 2
    assert "use --format safetensors" in capsys.readouterr().err
    assert not (tmp_path / "peft").exists()


@EVERY_ONE
def test_a_run_over_a_quantized_base_is_exported_with_the_numbers_that_it_was_trained_over(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    """Layers that the adapter left alone, too: they are dense in the artifact."""
    run = train(tmp_path, tiny_model_folder, "model.quantize=nf4", "adapter.targets=['q_proj', 'down_proj']")
    parity = export(run, build_exporter("safetensors", "float32"), tmp_path / "out", Silent())
    assert not parity.failed
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    untouched = [n for n, _ in plain.named_parameters() if n.endswith("up_proj.weight")]
    assert untouched and not any(torch.equal(plain.get_parameter(n), base.get_parameter(n)) for n in untouched)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_an_adapter_over_codes_is_no_adapter_of_the_published_base(
    quantize: str, tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, tiny_model_folder, f"model.quantize={quantize}")
    assert main(["export", str(run), "--format", "peft", "--out", str(tmp_path / "out")]) == 2
    assert f"held as {quantize}" in (said := capsys.readouterr().err) and "--format safetensors" in said
    assert not (tmp_path / "out").exists()


@EVERY_ONE
@pytest.mark.parametrize("format", ["peft", "safetensors"])
def test_a_run_over_the_blocks_of_a_gguf_file_is_exported(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks are the published model's own numbers, so the adapter fits that one."""
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    run = train(tmp_path, write_gguf(tmp_path / "tiny.gguf", template=CHATML), "model.quantize=gguf")
    parity = export(run, build_exporter(format), tmp_path / "out", Silent())
    assert not parity.failed


@EVERY_ONE
def test_an_update_that_4_bits_would_erase_is_refused_unless_told_otherwise(
    tmp_path: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tmp_path, tiny_model_folder, "model.quantize=nf4", "optimizer.learning_rate=1e-4")
    made = ["export", str(run), "--format", "packed", "--out", str(tmp_path / "out")]
    there = {path.name for path in tmp_path.iterdir()}
    assert main([*made, "--keep-failed"]) == 2
    assert "% of an update of" in (said := capsys.readouterr().err) and "90% is required" in said
    assert {path.name for path in tmp_path.iterdir()} == there, "nothing half-written is left"
    assert main([*made, "--least-kept", "0"]) == 0
    assert "of the update survives, mean of 14 layers" in capsys.readouterr().out
    shares = load(tmp_path / "out/parity.json")["update"]
    assert len(shares["layers"]) == 14 and shares["mean_kept"] < 0.1


def test_blocks_that_would_erase_an_update_are_refused_in_a_gguf_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base's own numbers lie on the grid of the file's Q8_0; those of a base in 16 bits lie anywhere."""
    need("gguf")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    base = write_gguf(tmp_path / "tiny.gguf", template=CHATML)
    run = train(tmp_path, base, "model.quantize=gguf", "optimizer.learning_rate=1e-5")
    made = ["export", str(run), "--format", "gguf", "--out", str(tmp_path / "out"), "--type"]
    assert main([*made, "q8_0"]) == 2
    assert "quantized to q8_0" in (said := capsys.readouterr().err) and "survive" in said
    assert not (tmp_path / "out").exists()
    assert main([*made, "f16", "--least-kept", "0.5"]) == 2
    assert "f16 has bits enough" in capsys.readouterr().err
    assert main([*made, "f16"]) == 0


@EVERY_ONE
def test_a_quantized_folder_holds_what_was_measured_and_is_a_base_again(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    run = train(tmp_path, tiny_model_folder, "model.quantize=nf4", "optimizer.learning_rate=5e-2")
    out = tmp_path / "out"
    assert main(["export", str(run), "--format", "packed", "--least-kept", "0.5", "--out", str(out)]) == 0
    shares = load(out / "parity.json")["update"]["layers"]
    base, again = (packed.load_packed(resolve(str(f)), torch.float32, "nf4") for f in (tiny_model_folder, out))
    trained = open_float32(run)
    for name, layer in trained.injected.layers.items():  # type: ignore[attr-defined]
        a, b = layer.update()
        update = (layer.scale * (b @ a)).detach()
        moved = again.get_submodule(name).dense(torch.float32) - base.get_submodule(name).dense(torch.float32)
        assert float((moved * update).sum() / update.square().sum()) == pytest.approx(shares[name]["kept"], abs=1e-3)
    assert train(tmp_path / "next", out, "model.quantize=nf4").is_dir()


@pytest.mark.parametrize(
    ("format", "type", "held"),
    [
        ("safetensors", "float32", "none"),
        pytest.param("peft", None, "none", marks=EVERY_ONE),
        pytest.param("packed", "int8", "int8", marks=EVERY_ONE),
        pytest.param("gguf", "f16", "none", marks=EVERY_ONE),
    ],
)
def test_new_tokens_survive_the_export_and_are_tokens_for_whoever_opens_it(
    format: str, type: str | None, held: str, tmp_path: Path, tiny_model_folder: Path
) -> None:
    need(format)
    rows = tmp_path / "rows.jsonl"
    named = ("adapter.new_tokens=['<street>', '</street>']", f"model.quantize={held}")
    run = train(
        tmp_path, tiny_model_folder, *named, change=lambda text: text.replace(' \\"street\\": \\"', " <street>")
    )
    assert "<street>" in rows.read_text(encoding="utf-8")
    out = tmp_path / "out"
    exporter = build_exporter(format, type, 0.0 if format == "packed" else None)
    assert not export(run, exporter, out, Silent()).failed
    if format == "gguf":  # llama.cpp told the gate the ids of the answers that it wrote
        return
    ids = AutoTokenizer.from_pretrained(out)("<street>Oak</street>", add_special_tokens=False)["input_ids"]
    vocabulary = load(tiny_model_folder / "config.json")["vocab_size"]
    assert ids[0] == vocabulary and ids[-1] == vocabulary + 1


@EVERY_ONE
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_other_architectures_run_in_llama_cpp_too(kind: str, tmp_path: Path, tiny_model_folder: Path) -> None:
    need("gguf")
    run = train(tmp_path, write_qwen(kind, tmp_path / kind, tiny_model_folder))
    parity = export(run, build_exporter("gguf", "f16"), tmp_path / "out", Silent())
    assert not parity.failed


def write_qwen(kind: str, folder: Path, tiny: Path) -> Path:
    """A random model of another family, untied, with the tiny model's tokenizer."""
    shutil.copytree(tiny, folder)
    values = load(folder / "config.json")
    kept = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    kept += ["num_key_value_heads", "max_position_embeddings", "initializer_range"]
    kept += ["bos_token_id", "eos_token_id", "pad_token_id"]
    config = AutoConfig.for_model(kind, **{key: values[key] for key in kept}, tie_word_embeddings=False)
    if kind == "qwen3":
        config.head_dim = 32  # not hidden / heads, as in the family's small models
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)  # zeros would hide a bias that is lost
    model.save_pretrained(folder)
    return folder
