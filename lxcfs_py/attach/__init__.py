"""The files in containers that already run, or are just starting."""
