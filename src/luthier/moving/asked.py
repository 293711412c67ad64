"""What a job asked for, as a request to the job service says it; an export may hold anything, so it is checked."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from luthier.data.read import kind_of
from luthier.jobs.http.schema import DpoHyperparameters, Hyperparameters, ReinforcementHyperparameters, Wandb
from luthier.jobs.translate import hyperparameters_of
from luthier.moving.found import Found, without_nulls

HYPERPARAMETERS: Mapping[str, type[Hyperparameters]] = {
    "supervised": Hyperparameters,
    "dpo": DpoHyperparameters,
    "reinforcement": ReinforcementHyperparameters,
    "reward": Hyperparameters,
}
"""By method; `reward` is a job of our own service."""


def asked_of(job: Found) -> dict[str, Any]:
    """`method` and `integrations` as `luthier.jobs.translate` takes them, without what a server adds or leaves null.

    Hyperparameters that nobody knows are kept: the summary tells of them.

    Raises:
        DataError: something is not as OpenAI writes it, or out of the range that it takes.
    """
    method = _table(job, "method", job.values.get("method"))
    kind = method.get("type", "supervised")
    if kind not in HYPERPARAMETERS:
        raise job.error(f"'method.type' is {kind!r:.60}; expected one of {', '.join(HYPERPARAMETERS)}")
    own = _table(job, f"method.{kind}", method.get(kind))
    for name, value in (("hyperparameters", job.values), (f"method.{kind}.hyperparameters", own)):
        _table(job, name, value.get("hyperparameters"))
    given = hyperparameters_of({**job.values, "method": {"type": kind, kind: own}})
    known = {name: value for name, value in given.items() if name in HYPERPARAMETERS[kind].model_fields}
    try:
        HYPERPARAMETERS[kind].model_validate(known)
    except ValidationError as error:
        last = error.errors()[-1]  # the first of a field says that it is not "auto"
        raise job.error(f"hyperparameter {last['loc'][0]!r} is {last['input']!r:.60}: {last['msg']}") from None
    settings: dict[str, Any] = {"hyperparameters": given}
    if kind == "reinforcement":
        settings["grader"] = without_nulls(Found(own, job.where).table("grader"))
    return {"method": {"type": kind, kind: settings}, "integrations": _integrations(job)}


def _integrations(job: Found) -> list[dict[str, Any]]:
    """Those with Weights & Biases, the only kind there is."""
    asked = job.values.get("integrations") or []
    found = []
    for one in asked if isinstance(asked, list) else [asked]:
        table = one.get("wandb") if isinstance(one, Mapping) and one.get("type") == "wandb" else None
        if not isinstance(table, Mapping):
            raise job.error("'integrations' has an entry that is not of the type 'wandb' with its table")
        kept = {name: table[name] for name in Wandb.model_fields if table.get(name) is not None}
        found.append({"type": "wandb", "wandb": kept})
    return found


def _table(job: Found, name: str, value: Any) -> Mapping[str, Any]:
    """An object that may be missing or null."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise job.error(f"{name!r} is {kind_of(value)}; expected an object, as OpenAI writes it")
    return value
