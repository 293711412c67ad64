"""What people take with them from OpenAI: exports become recipes, and old answers are compared with new ones."""
