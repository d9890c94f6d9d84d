"""Converters of public data sets of programming problems to prompts and records of the verifier `python`.

One file per format (`data.format`), each a pure function of one row. May import nothing but the standard library.
Source text that comes with a row is parsed here, never run.
"""
