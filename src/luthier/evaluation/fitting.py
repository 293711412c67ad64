"""The metrics that fit each kind of answer, by name. Loads nothing that is large: recipes are drafted with it."""

SCORED_TASKS = frozenset({"language", "pairs", "rewards", "steps"})
"""Tasks in which a model writes nothing: the probability that it gives to what is there is measured, or what its head
reads of it."""


def choose_metrics(task: str, has_schema: bool = False) -> tuple[str, ...]:
    """Names of the metrics that fit a task; the first one decides."""
    if task == "json":
        schema = ("schema_valid",) if has_schema else ()
        return ("field_f1", "exact_match", "json_valid", *schema, "field_precision", "field_recall")
    return {
        "label": ("accuracy", "macro_f1", "exact_match"),
        "labels": ("labels_f1", "labels_exact"),
        "number": ("r_squared", "absolute_error"),
        "spans": ("span_f1",),
        "tool_calls": (
            "tool_calls",
            "call_names",
            "call_arguments",
            "call_schema_valid",
            "call_precision",
            "call_recall",
        ),
        "answers": ("answer_f1", "answer_match"),
        "text": ("rouge_l", "chrf", "exact_match", "token_accuracy", "perplexity"),
        "language": ("bits_per_byte", "perplexity", "token_accuracy"),
        "pairs": ("pair_accuracy", "perplexity"),
        "rewards": ("reward_accuracy",),
        "steps": ("step_accuracy",),
    }[task]
