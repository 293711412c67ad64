"""Measured values, and retrieval measured by itself, as a report says them; the rest is in `schema.py`."""

from luthier.report.part import Interval, Part


class MeasuredRetriever(Part):
    """One way to search, on the questions of the test rows."""

    name: str
    """`bm25`, `dense`, `hybrid` or `reranked`; with `_before`, what a trained embedder began as."""
    seconds_per_query: float
    """Time of a search."""
    metrics: dict[str, Interval] = {}
    """`recall_at_1`, `_3`, `_5`, `_10`, `mrr` and `ndcg_at_10`."""
    against: str = ""
    """The retriever that it is compared with on the same questions; empty: none."""
    gains: dict[str, Interval] = {}
    """What it has more of each metric than that one."""


class Retrieval(Part):
    """Retrieval measured by itself: whether the right passages are found, whatever a model makes of them."""

    n: int
    """Questions."""
    groups: int
    """Questions that differ."""
    judged_by_gold: int = 0
    """Questions whose rows name the right passages."""
    judged_by_answer: int = 0
    """Questions of which a passage is right that holds the answer word for word."""
    not_judged: int = 0
    """Questions left out, of which nothing is known."""
    sources: int
    """Texts of the corpus."""
    passages: int
    """What they were cut into."""
    confidence: float
    """Coverage of the intervals."""
    used: str
    """The retriever that systems use."""
    top_k: int
    """Passages before a question, at most."""
    retrievers: tuple[MeasuredRetriever, ...]
    """From the simplest on; none where no row says what is right."""
