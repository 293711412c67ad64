"""Embedders and rerankers trained on a small corpus: whole runs of the command line over random encoders."""

import json
import random
import subprocess
import sys
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small_encoders import write_encoder

from luthier.cli.main import main
from luthier.errors import LuthierError, ModelError
from luthier.models.catalog import resolve
from luthier.rag.embedder import Embedder
from luthier.rag.reranker import CrossEncoder
from luthier.rag.retriever import build_retrievers
from luthier.rag.trained import model_of
from luthier.recipe import RetrievalSettings

RECIPE = """
[model]
name = "base"
[data]
train = "rows.jsonl"
validation_share = 0.2
test_share = 0.2
[retrieval]
corpus = "corpus.jsonl"
chunk_words = false
retriever = "bm25"
embedder = "base"
[objective]
type = "{objective}"
[adapter]
type = "{adapter}"
[optimizer]
learning_rate = {rate}
[schedule]
type = "constant"
[training]
steps = {steps}
rows_per_step = 8
validate_every = 20
patience = false
"""
REOPEN = """
import json, sys
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
folder, kind, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
if kind == "embedder":
    modules = [part["type"].split(".")[-1] for part in json.load(open(folder + "/modules.json"))]
    assert modules == ["Transformer", "Pooling", "Normalize"], modules
    assert json.load(open(folder + "/1_Pooling/config.json"))["pooling_mode_mean_tokens"]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    hidden = AutoModel.from_pretrained(folder).eval()(**given).last_hidden_state
    mask = given["attention_mask"][:, :, None]
    found = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
else:
    given = tokenizer(texts[:1], texts[1:2], return_tensors="pt")
    found = AutoModelForSequenceClassification.from_pretrained(folder).eval()(**given).logits
print(json.dumps(found.tolist()))
"""


def write_task(folder: Path, objective: str, adapter: str = "full", rate: float = 2e-3, steps: int = 60) -> Path:
    """Passages are three digits among words that say nothing, and four questions ask for the digits of each; a group of
    their own lets them be divided, so that held-out ones ask for passages that were trained on."""
    write_encoder(folder / "base", hidden_dropout_prob=0.1)
    rng, rows, corpus = random.Random(0), [], []
    for number, digits in enumerate(rng.sample(list(combinations("0123456789", 3)), 24)):
        words = [*digits, *rng.sample("abcdefghijklmnopqrstuvwxyz", 6)]
        rng.shuffle(words)
        corpus.append({"id": f"p{number}", "text": " ".join(words)})
        for at, asked in enumerate(rng.sample(list(permutations(digits)), 4)):
            row = {"id": f"q{number}-{at}", "question": " ".join(asked), "answers": ["-"], "group": f"g{number}-{at}"}
            rows.append({**row, "gold_passage_ids": [f"p{number}"]})
    for name, values in (("rows.jsonl", rows), ("corpus.jsonl", corpus)):
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(objective=objective, adapter=adapter, rate=rate, steps=steps), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))


def reopened(folder: Path, kind: str, texts: list[str]) -> np.ndarray:
    """What transformers alone makes of texts, in a process of its own."""
    command = [sys.executable, "-c", REOPEN, str(folder), kind, json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_a_trained_embedder_finds_more_and_is_reopened_by_others(
    adapter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_task(tmp_path, "contrastive", adapter, 2e-3 if adapter == "full" else 5e-3)
    run = tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(run)]) == 0
    assert "beside dense_before" in capsys.readouterr().out
    assert main(["report", str(run)]) != 0 and not (run / "report.html").exists()
    assert "retrieval.json tells" in capsys.readouterr().err
    found = json.loads((run / "retrieval.json").read_text(encoding="utf-8"))
    by_name = {one["name"]: one for one in found["retrievers"]}
    assert by_name["dense"]["against"] == "dense_before" and by_name["dense"]["gains"]["mrr"]["value"] > 0.1
    gates = {one["gate"]: one["passed"] for one in json.loads((run / "preflight.json").read_text(encoding="utf-8"))}
    assert gates == {"encoder_as_served": True, "tensors_moved": True}
    texts = ["0 4 7?", "a river 12"]
    embedder = Embedder(resolve(model_of(str(run), "embedder")), torch.device("cpu"))
    assert np.abs(embedder.embed(texts).vectors_ND - reopened(run / "adapter", "embedder", texts)).max() < 1e-5
    with pytest.raises(ModelError, match="is a run that trained an embedder"):
        model_of(str(run), "reranker")


def test_a_trained_reranker_learns_its_lists_and_is_reopened_by_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = write_task(tmp_path, "rerank", rate=1e-3), tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(run), "--set", "objective.negatives=3"]) == 0
    assert "beside bm25" in capsys.readouterr().out
    texts = ["0 4 7?", "a 7 b 4 0 c"]
    cross = CrossEncoder(resolve(model_of(str(run), "reranker")), torch.device("cpu"))
    assert cross.score([(texts[0], texts[1])]) == pytest.approx(
        reopened(run / "adapter", "reranker", texts)[0], abs=1e-5
    )
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert np.mean(losses[-15:]) < 0.8 * np.mean(losses[:15])


def test_rows_may_bring_their_passages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, run = write_task(tmp_path, "contrastive", steps=5), tmp_path / "run"
    texts = {one["id"]: one["text"] for one in map(json.loads, (tmp_path / "corpus.jsonl").read_text().splitlines())}
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    brought = [
        {"query": row["question"], "pos": [texts[row["gold_passage_ids"][0]]], "neg": [texts["p0"]]}
        for row in rows
        if row["gold_passage_ids"] != ["p0"]
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in brought), encoding="utf-8")
    assert main(["run", str(recipe), "--out", str(run)]) != 0
    assert "brings its passages as texts" in capsys.readouterr().err
    text = recipe.read_text(encoding="utf-8")
    start, end = text.index("[retrieval]"), text.index("[objective]")
    recipe.write_text(text[:start] + text[end:], encoding="utf-8")
    assert main(["run", str(recipe), "--out", str(run)]) == 0
    assert "24 passages of 24 sources" in capsys.readouterr().out
    trained = [json.loads(line) for line in (run / "data/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(len(row["extra"]["gold_passage_ids"]) == len(row["extra"]["wrong_passage_ids"]) == 1 for row in trained)


def test_test_questions_of_which_nothing_is_known_measure_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_task(tmp_path, "contrastive", steps=4)
    (tmp_path / "test.jsonl").write_text('{"question": "x y?", "answers": ["-"]}\n', encoding="utf-8")
    test = f"data.test='{tmp_path / 'test.jsonl'}'"
    assert main(["run", str(recipe), "--out", str(tmp_path / "run"), "--set", test]) == 0
    assert "so nothing is measured" in capsys.readouterr().out


def test_vectors_are_kept_by_the_weights_that_made_them(tmp_path: Path) -> None:
    recipe = write_task(tmp_path, "contrastive", steps=15)
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) == 0
    settings = RetrievalSettings(
        corpus=str(tmp_path / "corpus.jsonl"), retriever="dense", embedder=str(tmp_path / "run")
    )
    found = build_retrievers(settings)
    assert set(found) == {"bm25", "dense", "dense_before"}
    assert found["dense"].fingerprint != found["dense_before"].fingerprint
    assert len(list((tmp_path / "cache/vectors").iterdir())) == 2


def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    recipe = write_task(tmp_path, "contrastive", steps=8)
    parts = ["--set", "training.save_every=4"]
    assert main(["train", str(recipe), "--out", str(tmp_path / "whole"), *parts]) == 0
    assert main(["train", str(recipe), "--out", str(tmp_path / "cut"), *parts]) == 0
    for left in ("adapter/model.safetensors", "checkpoints/step-000008/manifest.json"):  # as if killed after step 4
        (tmp_path / "cut" / left).unlink()
    assert main(["train", str(recipe), "--out", str(tmp_path / "cut"), *parts]) == 0
    whole, cut = ((tmp_path / name / "adapter/model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("adapter.dropout=0.1", "adapter.dropout changes nothing"),
        ("model.precision='bfloat16'", "float32"),
        ("data.loss_on='all'", "data.loss_on changes nothing"),
        ("decision.smallest_gain=0.1", "no verdict"),
        ("adapter.type='prompt'", "cannot be folded"),
        ("training.gradient_checkpointing=true", "micro_batch_tokens"),
        ("training.rows_per_step=1", "compares the rows"),
    ],
)
def test_what_means_nothing_is_refused(
    change: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_task(tmp_path, "contrastive", "lora")
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--set", change]) != 0
    assert message in capsys.readouterr().err


def test_a_reranker_without_a_wrong_passage_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, corpus, rows = write_task(tmp_path, "rerank"), tmp_path / "corpus.jsonl", tmp_path / "rows.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    asked = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    named = [json.dumps({**row, "gold_passage_ids": ["p0"]}) + "\n" for row in asked]
    rows.write_text("".join(named), encoding="utf-8")
    assert main(["train", str(recipe), "--out", str(tmp_path / "run")]) != 0
    assert "finds no passage to put beside the right one" in capsys.readouterr().err


def test_commands_for_models_that_write_say_that_this_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_task(tmp_path, "contrastive")
    assert main(["estimate", str(recipe)]) != 0
    assert "luthier run" in capsys.readouterr().err
    assert main(["check", str(recipe)]) == 0 and "61 train" in capsys.readouterr().out
    assert main(["check", str(recipe), "--show", "2"]) != 0
    assert "luthier retrieve" in capsys.readouterr().err
    assert main(["train", str(recipe), "--out", str(tmp_path / "run"), "--remember"]) != 0
    assert "--remember" in capsys.readouterr().err


def test_a_run_of_another_kind_is_no_embedder(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(LuthierError, match="has trained nothing yet"):
        model_of(str(tmp_path), "embedder")
