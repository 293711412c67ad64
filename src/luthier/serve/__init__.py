"""An OpenAI-compatible server for trained models: one worker thread, one batch a model, one render path."""
