"""Systems, rows and differences in words, for the sentences of the verdict."""

from luthier.evaluation.task import HEAD_TASKS
from luthier.report.ladder import Ladder
from luthier.report.schema import Promise, System
from luthier.report.text import count, difference, interval, label, number


def plural(n: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def ladder_text(ladder: Ladder, system: System) -> str:
    """`fine_tuned reaches field F1 0.912 [0.894, 0.929] on 150 unseen rows`."""
    m = system.metrics[ladder.metric]
    value = interval(m.value, m.low, m.high)
    return f"{system.name} reaches {label(ladder.metric)} {value} on {unseen_rows(ladder, system)}"


def unseen_rows(ladder: Ladder, system: System) -> str:
    """`200 unseen rows`, or `200 unseen rows (40 of them different)` where many repeat."""
    repeated = f" ({count(ladder.groups(system))} of them different)" if ladder.repeats(system) else ""
    return f"{count(system.n)} unseen rows{repeated}"


def test_rows(ladder: Ladder, *systems: System) -> str:
    """`150 test rows`, or `40 different test rows` where some repeat."""
    different = ladder.groups(*systems)
    return plural(different, "different test row" if different < min(s.n for s in systems) else "test row")


def judges(ladder: Ladder) -> bool:
    """Whether what was trained is a head that judges replies, and writes none."""
    return ladder.facts.evaluation is not None and ladder.facts.evaluation.task in HEAD_TASKS.values()


def spoken(system: System) -> str:
    """A system in a sentence: a plain phrase for those of the usual ladder, else its name."""
    if system.name == system.type == "zero_shot" and {"reward_accuracy", "step_accuracy"} & system.metrics.keys():
        return "the untrained head"
    usual = {
        "zero_shot": "the plain prompt",
        "few_shot": "few-shot prompting",
        "rag": "retrieval",
        "fine_tuned": "the fine-tuned model",
        "fine_tuned_rag": "the model fine-tuned on retrieved passages",
    }
    return usual.get(system.name, system.name) if system.name == system.type else system.name


def reaches(ladder: Ladder, system: System) -> str:
    """`the fine-tuned model reaches field F1 0.912 on 150 unseen rows`."""
    value = number(ladder.value(system))
    return f"{spoken(system)} reaches {label(ladder.metric)} {value} on {unseen_rows(ladder, system)}"


def enough(ladder: Ladder) -> str:
    """`at least 0.02`: the least difference worth acting on, on the scale of the metric."""
    return f"at least {share_of_scale(ladder)}"


def share_of_scale(ladder: Ladder) -> str:
    """The least gain worth acting on, on the scale of the metric."""
    return number(ladder.facts.assumptions.smallest_gain * ladder.unit, 2)


def difference_text(ladder: Ladder, a: System, b: System) -> str:
    """`+0.12 [0.09, 0.15]`: a minus b."""
    d = ladder.difference(a, b)
    return difference(d.difference, d.low, d.high)


def promise_text(promise: Promise, metric: str) -> str:
    """`500 more training rows would bring +0.012 [0.004, 0.029] of field F1`."""
    gain = difference(promise.gain, promise.low, promise.high)
    return f"{plural(promise.more_rows, 'more training row')} would bring {gain} of {label(metric)}"
