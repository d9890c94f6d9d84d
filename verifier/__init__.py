"""Verifiers: decide pass, fail or error about one completion, and the service that feeds them."""
