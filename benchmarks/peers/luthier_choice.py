"""Luthier's scorer of multiple-choice questions that are given as tokens. Prints an outcome."""

from benchmarks.peers._outcome import Once, read_job
from luthier.models.catalog import resolve
from luthier.models.generate import score_choices_batch
from luthier.models.load import load

job = read_job()
loaded = load(resolve(job["model"]))
questions = [(q["prompt"], q["choices"]) for q in job["questions"]]
score_choices_batch(loaded, questions[:1])
with Once(job["started"]) as once:
    scores = score_choices_batch(loaded, questions)
tokens = sum(len(prompt) + len(choice) for prompt, choices in questions for choice in choices)
scored = sum(len(choice) for _, choices in questions for choice in choices)
once.tell(tokens, scored, -sum(map(sum, scores)) / scored)
