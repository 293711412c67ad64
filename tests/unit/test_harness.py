"""The harness: records in order, reuse only of what is still true, and a table that follows from the records."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import luthier
from luthier.data.templates import build_template
from luthier.errors import EvaluationError
from luthier.evaluation.harness import Evaluation, Options, evaluate, measure
from luthier.evaluation.rungs import Rung
from luthier.evaluation.significance import clopper_pearson, mcnemar
from luthier.evaluation.systems.base import (
    Answer,
    Answers,
    Context,
    System,
    TrainedOn,
    installed_versions,
    prediction,
)
from luthier.evaluation.systems.command import Command
from luthier.evaluation.task import build_metrics
from luthier.examples import Conversation, Example, Message
from luthier.models.load import LoadedModel

ANSWERED: list[str] = []
"""Names of the systems that had to answer, in order."""


class Fixed(System):
    """Answers right on some rows."""

    is_model: ClassVar[bool] = False
    name: str
    right: tuple[int, ...]
    fails: bool = False

    def answer(self, rows: Sequence[Example], context: Context) -> Answers:
        ANSWERED.append(self.name)
        if self.fails:
            raise EvaluationError(f"{self.name} cannot answer")
        outputs = [
            str(prediction(r, Answer(r.id, (), "")).target) if i in self.right else "wrong" for i, r in enumerate(rows)
        ]
        return Answers([Answer(r.id, r.prompt, o) for r, o in zip(rows, outputs, strict=True)], details={"x": 1})


class Tuned(Fixed):
    """The same, as if it were the trained model."""

    rung: ClassVar[Rung] = "fine_tune"
    trained_on: ClassVar[TrainedOn | None] = "rows"


def rows(count: int = 20) -> list[Conversation]:
    return [
        Conversation((Message("user", f"q{i}"), Message("assistant", f"a{i}")), id=f"t{i}", target=f"a{i}")
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def context(tiny_loaded: LoadedModel) -> Context:
    metric = build_metrics(["accuracy"])["accuracy"]
    template = build_template(tiny_loaded, "model")
    return Context(tiny_loaded, template, nullcontext, [], [], 4, "label", metric, "base", "tuned-1")


def run(context: Context, folder: Path, metrics: Sequence[str] = ("accuracy",), **systems: System) -> Evaluation:
    ANSWERED.clear()
    return evaluate(systems, rows(), context, build_metrics(metrics), Options(folder, metrics[0]))


def read(folder: Path, system: str) -> list[dict[str, Any]]:
    lines = (folder / "records" / f"{system}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


BASE = Fixed(name="base", right=tuple(range(10)))
WORSE = Fixed(name="worse", right=(1, 2))
BEST = Tuned(name="best", right=tuple(range(4, 20)))


def test_records_hold_every_row_in_order(context: Context, tmp_path: Path) -> None:
    run(context, tmp_path, base=BASE)
    records = read(tmp_path, "base")
    assert [r["id"] for r in records] == [f"t{i}" for i in range(20)]
    assert all(set(r) == {"id", "prompt", "output", "target", "scores"} for r in records)
    assert records[0]["prompt"] == [{"role": "user", "content": "q0"}]
    assert [r["scores"]["accuracy"] for r in records] == [1.0] * 10 + [0.0] * 10


def test_the_table_follows_from_the_records(context: Context, tmp_path: Path) -> None:
    evaluation = run(context, tmp_path, worse=WORSE, base=BASE, best=BEST)
    table = json.loads((tmp_path / "evaluation.json").read_text())
    assert table == evaluation.dump()
    assert (table["task"], table["primary_metric"], table["n"]) == ("label", "accuracy", 20)
    for system, count in zip(table["systems"], (2, 10, 16), strict=True):
        found = system["metrics"]["accuracy"]
        assert found["value"] == np.mean([r["scores"]["accuracy"] for r in read(tmp_path, system["name"])])
        assert (found["low"], found["high"]) == pytest.approx(clopper_pearson(count, 20))
    assert [s["baseline"] for s in table["systems"]] == [True, True, False]
    pairs = [(d["a"], d["b"]) for d in table["differences"]]
    assert pairs == [("base", "worse"), ("best", "worse"), ("best", "base")]
    last = table["differences"][-1]
    assert last["difference"] == pytest.approx(0.3) and last["p_value"] == pytest.approx(mcnemar(10, 4))
    # (1.96 + 0.84) standard errors of the paired difference: 14 rows differ, 10 of them one way
    assert last["minimum_detectable_effect"] == pytest.approx(2.8 * np.sqrt((14 / 20 - 0.3**2) / 20), rel=0.05)
    effects = [d["minimum_detectable_effect"] for d in table["differences"]]
    assert len(set(effects)) == 3, "each pair has its own"


def test_a_system_that_saw_the_rows_is_no_baseline(context: Context, tmp_path: Path) -> None:
    cheat = Fixed(name="cheat", right=tuple(range(20)), held_out=False, note="trained on these rows")
    evaluation = run(context, tmp_path, base=BASE, cheat=cheat, best=BEST)
    shown = {s["name"]: s for s in evaluation.dump()["systems"]}
    assert shown["cheat"]["held_out"] is False and shown["cheat"]["baseline"] is False
    assert shown["cheat"]["note"] == "trained on these rows"
    assert shown["base"]["baseline"] is True


def test_a_program_is_external_and_no_baseline(context: Context, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        'import json, sys\nfor line in sys.stdin: print(json.dumps({"id": json.loads(line)["id"], "output": "a"}))'
    )
    there = replace(context, recipe_folder=tmp_path)
    (shown,) = run(there, tmp_path, program=Command(command=("python", "program.py"))).dump()["systems"]
    assert (shown["type"], shown["baseline"]) == ("command", False)


def test_rows_that_repeat_are_counted_once(context: Context, tmp_path: Path) -> None:
    """Ten copies of every row: the same values, and intervals as wide as without them."""
    metrics = build_metrics(["accuracy", "json_valid"])
    few = [replace(row, target=str(i)) for i, row in enumerate(rows(20))]
    many = [replace(row, id=f"{row.id}-{copy}") for row in few for copy in range(10)]
    systems = {"base": Fixed(name="b", right=tuple(range(100))), "best": Tuned(name="a", right=tuple(range(40, 200)))}
    once = evaluate({"base": BASE, "best": BEST}, few, context, metrics, Options(tmp_path / "once", "accuracy")).dump()
    often = evaluate(systems, many, context, metrics, Options(tmp_path / "often", "accuracy")).dump()
    assert (once["n"], once["groups"], often["n"], often["groups"]) == (20, 20, 200, 20)
    a, b = (next(d for d in table["differences"] if d["metric"] == "accuracy") for table in (once, often))
    assert a["difference"] == pytest.approx(b["difference"])
    assert b["test"] == "paired bootstrap" and a["test"].startswith("McNemar")
    assert b["high"] - b["low"] > 0.8 * (a["high"] - a["low"])
    bounds = [table["systems"][0]["failures"]["json_valid"] for table in (once, often)]
    assert bounds[0]["per_million_high"] == bounds[1]["per_million_high"] < 1e6
    shown = [table["systems"][0]["metrics"]["accuracy"] for table in (once, often)]
    assert shown[1]["high"] - shown[1]["low"] > 0.8 * (shown[0]["high"] - shown[0]["low"])


def test_the_scale_of_a_metric_is_written_down(context: Context, tmp_path: Path) -> None:
    table = run(context, tmp_path, ("accuracy", "perplexity"), base=BASE).dump()
    assert table["bounds"] == {"accuracy": [0.0, 1.0]}
    assert table["lower_is_better"] == ["perplexity"]


def test_finished_systems_are_not_run_again(context: Context, tmp_path: Path) -> None:
    first = run(context, tmp_path, base=BASE, best=BEST)
    assert ANSWERED == ["base", "best"]
    again = run(context, tmp_path, base=BASE, best=BEST)
    assert ANSWERED == [] and again.dump() == first.dump()


def test_an_interrupted_evaluation_goes_on(context: Context, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="broken cannot answer"):
        run(context, tmp_path, base=BASE, broken=Fixed(name="broken", right=(), fails=True), best=BEST)
    assert len(read(tmp_path, "base")) == 20 and not (tmp_path / "evaluation.json").exists()
    run(context, tmp_path, base=BASE, broken=Fixed(name="broken", right=(3,)), best=BEST)
    assert ANSWERED == ["broken", "best"]


def test_new_weights_are_measured_again_and_baselines_are_not(context: Context, tmp_path: Path) -> None:
    run(context, tmp_path, base=BASE, best=BEST)
    run(replace(context, tuned_fingerprint="tuned-2"), tmp_path, base=BASE, best=BEST)
    assert ANSWERED == ["best"]


@pytest.mark.parametrize(
    "changed",
    [
        {"base_fingerprint": "other"},
        {"max_new_tokens": 5},
        {"train": rows(1)},
        {"validation": rows(1)},
        {"task": "text"},
        {"json_schema": {}},
        {"primary_metric": build_metrics(["exact_match"])["exact_match"]},
        {"versions": {**installed_versions(), "torch": "0.0.1"}},
        {"versions": {**installed_versions(), "luthier": "0.0.1"}},
    ],
)
def test_whatever_an_answer_depends_on_is_noticed(context: Context, tmp_path: Path, changed: dict[str, Any]) -> None:
    run(context, tmp_path, base=BASE)
    run(replace(context, **changed), tmp_path, base=BASE)
    assert ANSWERED == ["base"]


def test_another_template_or_device_is_noticed(context: Context, tmp_path: Path) -> None:
    run(context, tmp_path, base=BASE)
    run(replace(context, template=build_template(context.loaded, "chatml_tools")), tmp_path, base=BASE)
    assert ANSWERED == ["base"]
    run(context, tmp_path, base=BASE)
    run(replace(context, loaded=replace(context.loaded, device=torch.device("meta"))), tmp_path, base=BASE)
    assert ANSWERED == ["base"]


@pytest.mark.parametrize(
    "changed",
    [
        {"target": "a99"},
        {"extra": {"references": ["a1"]}},
        {"messages": (Message("user", "another question"), Message("assistant", "a1"))},
    ],
)
def test_other_test_rows_are_noticed(context: Context, tmp_path: Path, changed: dict[str, Any]) -> None:
    """Their ids may be the same as before."""
    run(context, tmp_path, base=BASE)
    test = rows()
    test[1] = replace(test[1], **changed)
    ANSWERED.clear()
    evaluate({"base": BASE}, test, context, build_metrics(["accuracy"]), Options(tmp_path, "accuracy"))
    assert ANSWERED == ["base"]


def test_versions_are_those_that_are_installed(context: Context) -> None:
    assert context.versions["torch"] == version("torch") and context.versions["luthier"] == luthier.__version__
    assert context.versions["transformers"] == version("transformers")


def test_other_settings_metrics_or_touched_records_are_noticed(context: Context, tmp_path: Path) -> None:
    run(context, tmp_path, base=BASE)
    run(context, tmp_path, base=Fixed(name="base", right=(1,)))
    assert ANSWERED == ["base"]
    run(context, tmp_path, ("accuracy", "exact_match"), base=Fixed(name="base", right=(1,)))
    assert ANSWERED == ["base"]
    with (tmp_path / "records" / "base.jsonl").open("a") as file:
        file.write("{}\n")
    run(context, tmp_path, ("accuracy", "exact_match"), base=Fixed(name="base", right=(1,)))
    assert ANSWERED == ["base"] and len(read(tmp_path, "base")) == 20


def test_a_changed_script_is_another_system(context: Context, tmp_path: Path) -> None:
    script = (
        'import json, sys\nfor line in sys.stdin: print(json.dumps({"id": json.loads(line)["id"], "output": "a1"}))'
    )
    there = replace(context, recipe_folder=tmp_path)
    system = Command(command=("python", "program.py"))
    for output, right in (("a1", 1), ("a1", 1), ("wrong", 0)):
        (tmp_path / "program.py").write_text(script.replace("a1", output))
        evaluation = run(there, tmp_path, program=system)
        assert evaluation.intervals["program"]["accuracy"].value == pytest.approx(right / 20)
        shown = evaluation.dump()["systems"][0]
        assert shown["tokens"] is None and shown["type"] == "command"


def test_metrics_that_need_a_model_are_left_out_for_programs(context: Context, tmp_path: Path) -> None:
    from luthier.evaluation.systems.zero_shot import ZeroShot

    metrics = ("accuracy", "perplexity")
    evaluation = run(context, tmp_path, metrics, base=BASE, zero_shot=ZeroShot())
    assert set(evaluation.intervals["base"]) == {"accuracy"}
    assert set(evaluation.intervals["zero_shot"]) == {"accuracy", "perplexity"}
    table = evaluation.dump()
    assert table["lower_is_better"] == ["perplexity"]
    assert {d["metric"] for d in table["differences"]} == {"accuracy"}
    model = table["systems"][1]
    assert model["tokens"]["prompt"] > 0 and model["seconds"] > 0


def test_format_failures_are_counted_per_million(context: Context, tmp_path: Path) -> None:
    evaluation = run(context, tmp_path, ("exact_match", "json_valid"), base=BASE)
    failures = evaluation.dump()["systems"][0]["failures"]
    assert set(failures) == {"json_valid"}
    assert failures["json_valid"]["count"] == 20 and failures["json_valid"]["per_million_high"] == 1e6


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([], "no test rows"),
        ([*rows(2), rows(1)[0]], "its id 't0' is also that of"),
        ([replace(rows(1)[0], id="")], "it has no id"),
        ([Conversation((Message("user", "?"),), id="t")], "no assistant message and no target"),
    ],
)
def test_rows_that_cannot_be_compared_are_refused(
    context: Context, tmp_path: Path, test: list[Conversation], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        evaluate({"base": BASE}, test, context, build_metrics(["accuracy"]), Options(tmp_path, "accuracy"))
    with pytest.raises(EvaluationError, match=message):  # where the first to answer is what will be trained
        measure({}, test, context, build_metrics(["accuracy"]), Options(tmp_path, "accuracy"))


def test_a_long_instruction_is_no_file_name(context: Context, tmp_path: Path) -> None:
    said = "Answer with one word and nothing else. " * 12
    found = run(context, tmp_path, ("accuracy",), base=BASE.model_copy(update={"note": said}))
    assert found.dump()["systems"][0]["note"] == said


@pytest.mark.parametrize(
    ("metric", "changed", "message"),
    [
        ("field_f1", {"target": "no json"}, "row t7: the target is not JSON"),
        ("rouge_l", {"extra": {"references": "one"}}, "row t7: `references` must be a list"),
        ("tool_calls", {"extra": {"acceptable": [{"f": {"x": "Paris"}}]}}, "row t7: `acceptable` must be a list"),
        ("schema_valid", {"target": '{"a": 1}'}, "leads out of the file"),
    ],
)
def test_a_bad_target_is_found_before_any_system_answers(
    context: Context, tmp_path: Path, metric: str, changed: dict[str, Any], message: str
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"properties": {"a": {"$ref": "https://example.org/other.json"}}}')
    test = [replace(row, target='{"b": 1}') for row in rows()]
    test[7] = replace(test[7], **{"messages": (test[7].messages[0], Message("assistant", '{"a": 1}')), **changed})
    metrics = build_metrics([metric, "accuracy"], str(schema))
    ANSWERED.clear()
    with pytest.raises(EvaluationError, match=message):
        evaluate({"base": BASE}, test, context, metrics, Options(tmp_path, metric))
    assert ANSWERED == []


def test_names_and_primary_metric_are_checked(context: Context, tmp_path: Path) -> None:
    metrics = build_metrics(["accuracy"])
    with pytest.raises(EvaluationError, match="becomes a file name"):
        evaluate({"../up": BASE}, rows(), context, metrics, Options(tmp_path, "accuracy"))
    with pytest.raises(EvaluationError, match="the primary metric 'chrf' is not measured; measured are accuracy"):
        evaluate({"base": BASE}, rows(), context, metrics, Options(tmp_path, "chrf"))


def test_half_a_surrogate_pair_does_not_lose_the_row(context: Context, tmp_path: Path) -> None:
    class Odd(Fixed):
        """Answers what UTF-8 cannot hold."""

        def answer(self, rows: Sequence[Example], context: Context) -> Answers:
            return Answers([Answer(r.id, r.prompt, "\ud800") for r in rows])

    run(context, tmp_path, odd=Odd(name="odd", right=()))
    assert read(tmp_path, "odd")[0]["output"] == "\ud800"
