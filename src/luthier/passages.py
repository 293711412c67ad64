"""A run's second training: the same rows with retrieved passages in their prompts, for the system fine_tuned_rag.

What the retriever finds for a row's question stands in the row's prompt in training as it will when the model is asked,
wrong passages and all: so the model learns to read, and to pass over what does not answer. Where the right passage is
known and was not found, it takes the place of the last one, since an answer that stands nowhere teaches to invent
(RAFT, Zhang et al. 2024, arXiv:2403.10131, puts the right one into most rows). The second training has a folder of its
own in the run's folder, with everything that a training proves and keeps, and goes on where it was.
"""
