"""Graders of OpenAI's fine-tuning API: one file each; the file name is a grader's `type`."""
