"""lm-evaluation-harness's HF back end on the same questions, as its own request batches. Prints an outcome."""

from lm_eval.models.huggingface import HFLM

from benchmarks.peers._outcome import Once, read_job

job = read_job()
model = HFLM(pretrained=job["model"], device="cpu", dtype="bfloat16", batch_size=job["batch"])
requests = [(("", ""), q["prompt"], choice) for q in job["questions"] for choice in q["choices"]]
model._loglikelihood_tokens(requests[:4], disable_tqdm=True)
with Once(job["started"]) as once:
    found = model._loglikelihood_tokens(requests, disable_tqdm=True)
scored = sum(len(choice) for _, _, choice in requests)
tokens = sum(len(prompt) + len(choice) for _, prompt, choice in requests)
once.tell(tokens, scored, -sum(score for score, _ in found) / scored)
