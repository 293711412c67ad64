"""The studio: pages for people over the job service. Never imports torch."""
