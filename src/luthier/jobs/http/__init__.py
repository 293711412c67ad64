"""The wire: OpenAI's paths, fields and shapes, and nothing that is stored or decided."""
