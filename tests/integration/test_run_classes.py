"""`luthier run` on texts with labels and a head: the report, a fresh process, the server and exports say the same."""

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.serving import running

from luthier.assemble import open_trained
from luthier.cli.main import main
from luthier.errors import DataError, ExportError, ModelError
from luthier.evaluation.classes import Classifier
from luthier.evaluation.said import Said
from luthier.examples import Conversation, Message
from luthier.export.make import PARITY, build_exporter, export
from luthier.progress import Silent
from luthier.serving import Runs

RECIPE = """
[model]
name = "{model}"
precision = "float32"
[data]
train = "rows.jsonl"
test = "test.jsonl"
[objective]
type = "{objective}"
{more}
[optimizer]
learning_rate = 1e-2
[training]
steps = {steps}
rows_per_step = 8
[evaluation.systems.fine_tuned]
"""
WORDS = {
    "river": "nature",
    "forest": "nature",
    "engine": "machine",
    "wheel": "machine",
    "soup": "food",
    "bread": "food",
}
SYSTEM = "Say what it is about."
TEXTS = ["Where is the river 4?", "Where is the engine 70?", "Where is the soup 12?", "x"]


def write(
    folder: Path, model: Path, rows: list[dict[str, Any]], objective: str, steps: int = 60, more: str = ""
) -> Path:
    for name, part in (("rows.jsonl", rows[:-60]), ("test.jsonl", rows[-60:])):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    recipe = folder / f"{objective}.toml"
    recipe.write_text(RECIPE.format(model=model, objective=objective, steps=steps, more=more), encoding="utf-8")
    return recipe


def labeled(count: int) -> list[dict[str, Any]]:
    pairs = list(WORDS.items())
    return [
        {"text": f"Where is the {pairs[i % 6][0]} {i * 37 % 9973}?", "label": pairs[i % 6][1]} for i in range(count)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    rows = labeled(300)
    rows[-1]["label"] = "nobody saw this"
    rows = [{**row, "system": SYSTEM} for row in rows]
    recipe = write(folder, tiny_model_folder, rows, "classify", more='head_start = "zeros"\nhead_rate = 1.0')
    assert main(["run", str(recipe), "--out", str(folder / "run")]) == 0
    return folder / "run"


def said(run: Path, texts: list[str] = TEXTS) -> list[Said]:
    trained = open_trained(run)
    reader = Classifier(trained.loaded, trained.template, trained.injected.head)
    lead = (Message("system", reader.system),) if reader.system else ()
    return reader.say([Conversation((*lead, Message("user", text))) for text in texts])


def probs(found: list[Said]) -> np.ndarray:
    return np.array([list(one.probabilities.values()) for one in found])


def test_the_report_has_labels_calibration_and_abstention(run: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    (system,) = report["systems"]
    metrics = system["metrics"]
    assert 0.8 < metrics["accuracy"]["value"] < 1, "one test row has a label that no training row has"
    assert metrics["calibration_error"]["value"] < 0.2 and metrics["brier"]["value"] < 0.3
    assert not (run / "forgetting.json").exists()
    record = json.loads((run / "records/fine_tuned.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert record["output"] in WORDS.values() and 0 < record["confidence"] <= 1
    settings = json.loads((run / "adapter/head.json").read_text(encoding="utf-8"))
    assert settings["labels"] == ["food", "machine", "nature"] and settings["input"] == "chat"
    assert settings["found"]["temperature"] > 0 and len(settings["found"]["validation"]["right"]) > 10
    (told,) = report["abstention"]["systems"]
    rows = len(settings["found"]["validation"]["right"])
    assert told["threshold"] is None and rows < 59 <= told["rows_to_show"] == rows * round(told["rows_to_show"] / rows)
    assert f"about {told['rows_to_show']} like them or more might" in (run / "report.html").read_text(encoding="utf-8")


def test_a_fresh_process_says_the_same(run: Path) -> None:
    here = said(run)
    assert [one.output for one in here[:3]] == ["nature", "machine", "food"]
    program = (
        "import sys, json\nfrom pathlib import Path\n"
        "from luthier.assemble import open_trained\nfrom luthier.evaluation.classes import Classifier\n"
        "from luthier.examples import Conversation, Message\n"
        "t = open_trained(Path(sys.argv[1]))\nr = Classifier(t.loaded, t.template, t.injected.head)\n"
        "lead = (Message('system', r.system),)\n"
        "said = r.say([Conversation((*lead, Message('user', text))) for text in json.loads(sys.argv[2])])\n"
        "print(json.dumps([dict(one.probabilities) for one in said]))\n"
    )
    command = [sys.executable, "-c", program, str(run), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [dict(one.probabilities) for one in here]


def ask(url: str, body: dict[str, Any], route: str = "/classify") -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        url.removesuffix("/v1") + route, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_the_server_says_the_same_in_vllms_shape(run: Path) -> None:
    here = said(run)
    with running(Runs({"topics": run}).models()) as url:
        status, told = ask(url, {"model": "topics", "input": TEXTS, "precision": 0.5})
        assert status == 200 and told["object"] == "list" and told["usage"]["completion_tokens"] == 0
        assert [item["index"] for item in told["data"]] == list(range(4)) and told["data"][0]["num_classes"] == 3
        assert [item["label"] for item in told["data"]] == [one.output for one in here]
        np.testing.assert_allclose([item["probs"] for item in told["data"]], probs(here), atol=1e-5)
        assert all(item["answered"] == (max(item["probs"]) >= item["threshold"]) for item in told["data"])
        status, alone = ask(url, {"model": "topics", "input": TEXTS[0]})
        assert status == 200 and "answered" not in alone["data"][0]
        chat = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": TEXTS[0]}]
        status, same = ask(url, {"model": "topics", "messages": chat})
        assert status == 200 and same["data"][0] == alone["data"][0], "a text has the system message of training rows"
        status, other = ask(url, {"model": "topics", "messages": chat[1:]})
        assert status == 200 and other["data"][0]["probs"] != alone["data"][0]["probs"]
        for body, param, words in (
            ({"model": "base", "input": "x"}, "model", "writes replies"),
            ({"model": "topics", "input": []}, "input", "string"),
            ({"model": "topics", "input": "w " * 4000}, "input", "context"),
            ({"model": "topics"}, "messages", "at least one"),
            ({"model": "topics", "input": "x", "n": 2}, "n", "n"),
        ):
            status, refused = ask(url, body)
            assert status == 400 and refused["error"]["param"] == param and words in refused["error"]["message"], body
        chatting = {"model": "topics", "messages": chat}
        status, refused = ask(url, chatting, "/v1/chat/completions")
        assert status == 400 and "/classify" in refused["error"]["message"]


@pytest.mark.exports
@pytest.mark.parametrize("format", ["safetensors", "peft"])
def test_an_export_says_the_same_by_transformers_alone(format: str, run: Path, tmp_path: Path) -> None:
    import transformers

    parity = export(run, build_exporter(format), tmp_path / "out", Silent())
    assert not parity.failed and parity.figures["greedy_agreement"]["trained"] == 1
    assert json.loads((tmp_path / "out" / PARITY).read_text(encoding="utf-8"))["head"] == "classify"
    if format == "peft":
        return  # opened by peft in the gate
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    chats = [[{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}] for text in TEXTS]
    options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", "padding": True}
    with torch.no_grad():
        found = model(**tokenizer.apply_chat_template(chats, **options)).logits.softmax(-1)
    assert list(model.config.id2label.values()) == list(said(run)[0].probabilities)
    np.testing.assert_allclose(found.numpy(), probs(said(run)), atol=1e-4, err_msg="calibrated")


def test_a_format_without_a_place_for_heads_refuses_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="answers by a head of kind 'classify'"):
        export(run, build_exporter("gguf"), tmp_path / "out", Silent())


def test_a_head_is_never_read_with_other_names(run: Path) -> None:
    path = run / "adapter/head.json"
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept.replace("nature", "art"), encoding="utf-8")
    try:
        with pytest.raises(ModelError, match=r"head.json was changed"):
            open_trained(run)
    finally:
        path.write_text(kept, encoding="utf-8")


def test_rows_that_cannot_be_classified_say_so(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = labeled(120)
    more = 'labels = ["food", "machine"]'
    recipe = write(tmp_path, tiny_model_folder, rows, "classify", more=more)
    with pytest.raises(DataError, match=r"'nature' is none of objective.labels \('food', 'machine'\)"):
        main_raising(recipe, tmp_path / "a")
    recipe = write(tmp_path, tiny_model_folder, [{**row, "label": "food"} for row in rows], "classify")
    with pytest.raises(DataError, match="every training row has the label 'food'"):
        main_raising(recipe, tmp_path / "b")


def main_raising(recipe: Path, out: Path) -> None:
    """Open the run as `luthier run` does, and let errors through."""
    from luthier.data_stage import prepare_data
    from luthier.recipe import load
    from luthier.run_folder import RunFolder
    from luthier.stages import open_run

    folder, loaded = RunFolder(out), load(recipe)
    with folder.locked():
        folder.open(loaded, recipe)
        open_run(loaded, folder, prepare_data(loaded, folder, Silent()), Silent())


def by_kind(objective: str) -> list[dict[str, Any]]:
    """Rows whose words say what is wanted."""
    words = list(WORDS.items())
    rows: list[dict[str, Any]] = []
    for i in range(240):
        (a, of_a), (b, of_b) = words[i % 6], words[i * 5 // 6 % 6]
        text = f"Where is the {a} and the {b} {i * 37 % 9973}?"
        if objective == "multi_label":
            rows.append({"text": text, "labels": sorted({of_a, of_b})})
        elif objective == "regress":
            rows.append({"text": text, "number": 10.0 + 3 * (of_a == "food") + 6 * (of_b == "food")})
        else:
            places = [(text.index(a), a, of_a), (text.rindex(b), b, of_b)]
            spans = [{"start": at, "end": at + len(word), "label": label} for at, word, label in dict.fromkeys(places)]
            rows.append({"text": text, "spans": spans})
    return rows


KINDS = {
    "multi_label": ("labels_f1", 0.9, 'input = "text"\npositive_weights = "balanced"'),
    "regress": ("r_squared", 0.7, ""),
    "token_classify": ("span_f1", 0.9, ""),
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Callable[[str], Path]:
    """The run of a kind of head, trained once."""

    @cache
    def made(objective: str) -> Path:
        folder, more = tmp_path_factory.mktemp(objective), f"{KINDS[objective][2]}\nhead_rate = 1.0"
        recipe = write(folder, tiny_model_folder, by_kind(objective), objective, steps=80, more=more)
        assert main(["run", str(recipe), "--out", str(folder / "run")]) == 0
        return folder / "run"

    return made


@pytest.mark.parametrize("objective", KINDS)
def test_other_heads_are_trained_and_served_with_equal_outputs(objective: str, run_of: Callable[[str], Path]) -> None:
    metric, least, _ = KINDS[objective]
    run = run_of(objective)
    (system,) = json.loads((run / "report.json").read_text(encoding="utf-8"))["systems"]
    assert system["metrics"][metric]["value"] > least
    texts = [row["text"] for row in by_kind(objective)[-4:]]
    here = [dict(one.item) for one in said(run, texts)]
    with running(Runs({"read": run}).models()) as url:
        status, told = ask(url, {"model": "read", "input": texts})
        assert status == 200
        assert_alike([{k: v for k, v in item.items() if k != "index"} for item in told["data"]], here)
        status, refused = ask(url, {"model": "read", "input": texts, "precision": 0.9})
        assert status == 400 and refused["error"]["param"] == "precision"
        if objective == "multi_label":  # which reads the text alone
            tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
            body = {"model": "read", "messages": [{"role": "user", "content": texts[0]}], "tools": tools}
            status, refused = ask(url, body)
            assert status == 400 and refused["error"]["param"] == "tools"


@pytest.mark.exports
@pytest.mark.parametrize("format", ["safetensors", "peft"])
@pytest.mark.parametrize("objective", KINDS)
def test_other_heads_are_exported_with_equal_outputs(
    objective: str, format: str, run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    parity = export(run_of(objective), build_exporter(format), tmp_path / "out", Silent())
    assert not parity.failed and parity.figures["head"] == objective


def assert_alike(found: Any, wanted: Any) -> None:
    """Equal, numbers up to the order of sums."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_alike(found[name], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_alike(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-4)
    else:
        assert found == wanted
