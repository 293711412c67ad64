"""The job service: OpenAI's fine-tuning API over a store, a supervisor and child processes. Never imports torch."""
