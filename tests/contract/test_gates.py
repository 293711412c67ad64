"""What every gate owes, found by listing `luthier/preflight`: a claim, a stage, advice, and a closed door in doubt."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mutants.bench import Bench, dpo_bench, train_three_steps

from luthier import registry
from luthier.adapters.lora import LoRA
from luthier.data.formats.base import read_examples
from luthier.data.templates import build_template
from luthier.errors import PreflightError, TemplateError
from luthier.examples import Conversation, Message, Row, Where
from luthier.models.catalog import resolve
from luthier.models.forest import Batch
from luthier.models.load import load, open_without_weights
from luthier.models.scorer import Scorer
from luthier.objectives.base import Models
from luthier.objectives.sft import SFT
from luthier.preflight.base import (
    GATES,
    BatchBuilder,
    Gate,
    GateResult,
    RowSettings,
    Subject,
    gates,
    require,
    run_gates,
)

NAMES = registry.names(GATES)
STAGES = ("rows", "all_rows", "model", "steps")


def _gate(name: str) -> Gate:
    return registry.load_class(GATES, name, Gate)()  # type: ignore[type-abstract]


@pytest.mark.parametrize("name", NAMES)
def test_a_gate_says_what_it_proves_and_what_to_do(name: str) -> None:
    gate = _gate(name)
    assert gate.proves.endswith(".") and gate.proves.count(". ") == 0, "one sentence"
    assert len(gate.proves) <= 120 and gate.advice.endswith(".")
    assert gate.stage in STAGES
    assert type(gate).__doc__
    assert gate.passes("ok").gate == name


def test_each_gate_belongs_to_one_stage() -> None:
    assert sorted(registry.name_of(gate) for stage in STAGES for gate in gates(stage)) == NAMES  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", STAGES)
def test_results_are_plain_json_with_the_promised_keys(stage: Any) -> None:
    subject = Bench().with_units(max_rows=3) if stage == "all_rows" else Bench().with_model()
    if stage == "steps":
        subject = train_three_steps(subject)
    for result in run_gates(subject, stage):
        plain = json.loads(json.dumps(result.dump(), allow_nan=False))
        assert list(plain) == ["gate", "proves", "passed", "message", "details"]
        assert plain["passed"] is True and plain["message"]


@pytest.mark.parametrize("name", NAMES)
def test_an_error_inside_a_gate_is_a_refusal(name: str) -> None:
    class Broken(Subject):
        @property
        def cases(self) -> Any:  # type: ignore[override]
            raise TemplateError("the template is broken")

        @property
        def held_out(self) -> Any:  # type: ignore[override]
            raise TemplateError("the held-out rows cannot be read")

        @held_out.setter
        def held_out(self, value: Any) -> None: ...

    clean = Bench().subject()
    names = ("examples", "template", "untruncated", "tokenizer", "objective", "settings")
    broken = Broken(**{key: vars(clean)[key] for key in names})
    result = next(r for r in run_gates(broken, _gate(name).stage) if r.gate == name)
    # these have nothing to show without a reference, without a start, or where nothing is sampled
    needing = ("reference_is_policy", "adapter_start", "first_rollout", "reference_rewards")
    assert not result.passed or name in needing


def test_no_rows_is_a_refusal() -> None:
    with pytest.raises(PreflightError, match="no training rows"):
        run_gates(replace(Bench().subject(), examples=[]), "rows")
    with pytest.raises(PreflightError, match="no gate was run"):
        require([])


def test_require_lists_every_refusal_with_its_place_and_advice() -> None:
    results = run_gates(Bench(source="{{ raise_exception('no') }}").subject(), "rows")
    refused = [r for r in results if not r.passed]
    assert len(refused) > 1
    with pytest.raises(PreflightError) as caught:
        require([GateResult("fine", "All is well.", True, "yes"), *results])
    message = str(caught.value)
    assert all(f"[{r.gate}] {r.proves}" in message for r in refused)
    assert "train.jsonl, line 1" in message and "model.template" in message
    require([GateResult("fine", "All is well.", True, "yes")])


@pytest.mark.parametrize("make", [Bench, dpo_bench], ids=["sft", "dpo"])
def test_gates_leave_the_model_as_it_was(make: Any) -> None:
    subject = make().with_model()
    model = subject.need_model().model
    model.train()
    model.model.layers[0].eval()
    before = {name: t.detach().clone() for name, t in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    run_gates(subject, "rows")
    run_gates(subject, "model")
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state), "the first step's dropout must not depend on the gates"


def test_probe_rows_are_scored_once_for_all_gates() -> None:
    class Counting(BatchBuilder):
        built = 0

        def build(self, rows: Any) -> Batch:
            Counting.built += 1
            return super().build(rows)

    subject = replace(Bench().with_model(), batches=Counting())
    run_gates(subject, "model")
    # the shared batch, one for the adapter's gradient, two with a row changed, one of answers, four of gradients
    assert Counting.built <= 9


def test_rows_are_spread_over_a_long_file_and_the_message_says_so() -> None:
    subject = Bench().subject()
    many = [replace(e, id=f"r{i}") for i in range(500) for e in subject.examples[:4]]
    subject = replace(subject, examples=many, max_rows=7)
    assert len(subject.cases) == 7
    assert [c.example.id for c in subject.cases][::6] == ["r0", "r499"]
    rendered = next(r for r in run_gates(subject, "rows") if r.gate == "rendered")
    assert "7 of 2,000 rows, spread evenly" in rendered.message


def test_rows_that_were_not_rendered_are_a_refusal_and_a_row_behind_the_sample_is_named() -> None:
    bench = Bench(settings=RowSettings(60, max_truncated_share=1.0))
    (result,) = run_gates(replace(bench.with_units(max_rows=2), units={}), "all_rows")
    assert not result.passed and "0 of 12 train rows were rendered" in result.message
    (result,) = run_gates(bench.with_units(max_rows=2), "all_rows")
    assert not result.passed and "train.jsonl, line 11: row" in result.message
    (result,) = run_gates(Bench(settings=RowSettings(60)).with_units(max_rows=2), "all_rows")
    assert "12 train rows are cut; allowed are 0.0%" in result.message


@pytest.mark.parametrize(
    ("gate", "settings", "source"),
    [
        (
            "rendered",
            RowSettings(512),
            "{{ raise_exception('no') }}",
        ),
        ("trained_tokens", RowSettings(5, max_truncated_share=1.0), None),
        ("truncation", RowSettings(5), None),
    ],
)
def test_validation_rows_are_looked_at_too(gate: str, settings: RowSettings, source: str | None) -> None:
    bench = Bench(settings=settings, source=source)
    bench.held_out = {"validation": [replace(e, where=Where("validation.jsonl", 3)) for e in bench.examples[:2]]}
    result = next(r for r in run_gates(bench.subject(), "rows") if r.gate == gate)
    listed = [fault["where"] for fault in result.details["listed"]]
    assert not result.passed and "validation.jsonl, line 3" in listed


def test_a_leak_behind_the_sample_is_found_all_the_same() -> None:
    bench = Bench()
    bench.held_out = {"validation": [bench.examples[5]]}
    subject = replace(bench.subject(), max_rows=2)
    result = next(r for r in run_gates(subject, "rows") if r.gate == "splits_disjoint")
    assert not result.passed and "train.jsonl, line 6" in result.message


def test_a_question_answered_in_an_earlier_turn_is_a_leak_and_one_that_differs_in_case_is_none() -> None:
    bench = Bench()
    first = bench.examples[0]
    assert isinstance(first, Conversation)
    later = (*first.messages, Message("user", "thanks"), Message("assistant", "You are welcome."))
    bench.examples[0] = replace(first, messages=later)
    shouted = tuple(replace(m, content=m.content.upper()) if m.role == "user" else m for m in first.messages)
    for messages, passes in ((first.messages, False), (shouted, True)):
        bench.held_out = {"test": [replace(first, messages=messages, where=Where("test.jsonl", 1))]}
        result = next(r for r in run_gates(bench.subject(), "rows") if r.gate == "splits_disjoint")
        assert result.passed is passes, result.message


def test_a_result_counts_all_faults_and_writes_out_the_first() -> None:
    subject = Bench(source="{{ raise_exception('no') }}").subject()
    result = next(r for r in run_gates(subject, "rows") if r.gate == "rendered")
    details: Mapping[str, Any] = result.details
    assert details["faults"] == 12 and len(details["listed"]) == 12
    assert "... and 7 more" in result.message


def test_a_wrong_row_is_named_by_label_shift() -> None:
    class Swapped(BatchBuilder):
        def build(self, rows: Any) -> Batch:
            first, *rest = rows
            return super().build([Row((*first.ids[:-2], 3, 4), first.loss_mask, first.id), *rest])

    subject = replace(Bench().subject(), batches=Swapped())
    result = next(r for r in run_gates(subject, "rows") if r.gate == "label_shift")
    assert not result.passed and "row-1" in result.message and result.details["faults"] == 1


def test_a_difference_that_is_not_finite_still_makes_valid_json() -> None:
    def spoil(model: Any) -> None:
        with torch.no_grad():
            model.model.norm.weight[0] = float("nan")

    for result in run_gates(Bench().with_model(spoil), "model"):
        json.dumps(result.dump(), allow_nan=False)


def _real(folder: Path, data: Path, template_name: str) -> Subject:
    """The default model's rows over real data, without its weights."""
    loaded = open_without_weights(resolve(str(folder)))
    examples = list(read_examples(data / "train.jsonl"))
    return Subject(
        examples=examples,
        template=build_template(loaded, template_name, max_tokens=2048),
        untruncated=build_template(loaded, template_name),
        tokenizer=loaded.tokenizer,
        objective=SFT(),
        settings=RowSettings(max_tokens=2048),
        held_out={"test": list(read_examples(data / "test.jsonl"))},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "template_name", "refused"),
    [
        ("json_extraction", "model", []),
        ("toolcalls", "chatml_tools", []),
        ("toolcalls", "model", ["masked_text", "nothing_dropped"]),
    ],
)
def test_rows_of_the_default_model_over_real_data(
    real_model_folder: Path, shared_data: Path, name: str, template_name: str, refused: list[str]
) -> None:
    results = run_gates(_real(real_model_folder, shared_data / name, template_name), "rows")
    assert [r.gate for r in results if not r.passed] == refused


@pytest.mark.slow
def test_the_default_model_passes_the_gates_on_the_model(real_model_folder: Path, shared_data: Path) -> None:
    loaded = load(resolve(str(real_model_folder)))
    subject = _real(real_model_folder, shared_data / "json_extraction", "model")
    subject.examples = subject.examples[:64]
    subject.loaded = loaded
    subject.injected = LoRA(rank=4).inject(loaded.model, 0)
    subject.models = Models(Scorer(loaded.model))
    require(run_gates(subject, "model"))
