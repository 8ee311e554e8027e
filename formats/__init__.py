"""File formats: other people's and, in tokens.py, ours. Nothing here is needed for the rest."""
