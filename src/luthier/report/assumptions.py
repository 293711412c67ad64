"""What the verdict would be if one of its assumptions were another, everything measured as it is."""

from dataclasses import replace
from typing import Any

from luthier.report.decision import first_rule
from luthier.report.ladder import Facts, Ladder, seconds_of_one
from luthier.report.schema import OtherAssumption, System


def sensitivity(facts: Facts) -> tuple[OtherAssumption, ...]:
    """What would be recommended if one assumption were another: half and twice each number, and other paces of change.

    Limits that the recipe leaves out are tried at half and at all of what the recommended system was measured at, so
    that a limit that would exclude it is always among them.
    """
    ladder = Ladder(facts)
    now = first_rule(ladder)[1]
    if facts.evaluation is None:
        return ()
    found = []
    for key, others in _other_values(ladder, now.system).items():
        for other in others:
            assumed = facts.assumptions.model_copy(update={key: other})
            then = first_rule(Ladder(replace(facts, assumptions=assumed)))[1]
            system = then.system.name if then.system else None
            changes = (then.recommendation, system) != (now.recommendation, now.system.name if now.system else None)
            found.append(
                OtherAssumption(
                    assumption=key,
                    now=facts.assumptions.model_dump()[key],
                    other=other,
                    recommendation=then.recommendation,
                    system=system,
                    changes=changes,
                )
            )
    return tuple(found)


def _other_values(ladder: Ladder, system: System | None) -> dict[str, list[Any]]:
    assumptions = ladder.facts.assumptions
    found: dict[str, list[Any]] = {
        "smallest_gain": [assumptions.smallest_gain / 2, min(assumptions.smallest_gain * 2, 0.99)],
        "coarsest_effect": [assumptions.coarsest_effect / 2, min(assumptions.coarsest_effect * 2, 0.99)],
        "most_failures": [assumptions.most_failures / 2, min(assumptions.most_failures * 2, 1.0)],
        "facts_change": [pace for pace in ("yearly", "monthly") if pace != assumptions.facts_change],
    }
    seconds = seconds_of_one(system) if system is not None else None
    if assumptions.most_seconds is not None:
        found["most_seconds"] = [None, assumptions.most_seconds / 2, assumptions.most_seconds * 2]
    elif seconds:
        found["most_seconds"] = [seconds / 2, seconds]
    lost = ladder.largest_loss(system) if system is not None else None
    if assumptions.most_forgetting is not None:
        found["most_forgetting"] = [None, assumptions.most_forgetting / 2, assumptions.most_forgetting * 2]
    elif lost is not None:
        found["most_forgetting"] = [lost[1] / 2, lost[1]]
    return found
