"""Every seeded failure is refused by the gate that it names, and a correct run by none; the docs tell the same."""

import pytest
from tests.mutants import seeds, seeds_trained
from tests.mutants.bench import Bench, documents, dpo_bench, full_bench, train_three_steps
from tests.mutants.registry import Mutant
from tests.mutants.score import BEGIN, END, PAGE, measure, table

from luthier import registry
from luthier.preflight.base import GATES, RowSettings, run_gates

MUTANTS = (*seeds.MUTANTS, *seeds_trained.MUTANTS)


CLEAN = {
    "chatml": lambda: Bench(),
    "bos": lambda: Bench(kind="bos"),
    "dpo": dpo_bench,
    "full": full_bench,
    "continues": lambda: Bench(continues=True),
    "dpo_continues": lambda: dpo_bench(continues=True),
    "loss_on_all": lambda: Bench(settings=RowSettings(512, loss_on="all")),
    "last_assistant": lambda: Bench(settings=RowSettings(512, loss_on="last_assistant")),
    "documents": lambda: Bench(examples=documents(), held_out={}),
    "documents_without_chat_template": lambda: Bench(examples=documents(), held_out={}, source=""),
    "documents_with_bos": lambda: Bench(kind="bos", examples=documents(), held_out={}),
    "accepted_truncation": lambda: Bench(settings=RowSettings(405, max_truncated_share=0.5)),
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_the_named_gate_refuses_the_mutant(mutant: Mutant) -> None:
    assert measure(mutant).caught, measure(mutant).refused_by


@pytest.mark.parametrize("name", CLEAN)
def test_no_gate_refuses_a_correct_run(name: str) -> None:
    subject = CLEAN[name]().with_model()
    subject.units = CLEAN[name]().with_units(max_rows=3).units
    results = [result for stage in ("rows", "all_rows", "model") for result in run_gates(subject, stage)]
    results += run_gates(train_three_steps(subject), "steps")
    assert [(r.gate, r.message) for r in results if not r.passed] == []


def test_every_gate_has_a_mutant() -> None:
    assert {m.gate for m in MUTANTS} == set(registry.names(GATES))


def test_the_table_in_the_docs_is_current() -> None:
    documented = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert documented == table([measure(mutant) for mutant in MUTANTS]), (
        "run `python -m tests.mutants.score --write` and commit docs/preflight.md"
    )
