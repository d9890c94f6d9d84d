"""The generated pages of docs/reference, made from the code that they describe.

`python -m docs.generators` writes them, `--check` says which ones are not current (`make docs` and a test do both).
May import the five packages; nothing imports this one.
"""
