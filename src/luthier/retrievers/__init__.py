"""What finds passages, trained on the user's own questions: an embedder or a reranker (docs/retrievers.md)."""
