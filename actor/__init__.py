"""Actors: take tickets, sample completions from the newest weights, offer them to the verifiers."""
