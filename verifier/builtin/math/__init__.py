"""The verifier `math`: final answers compared by value.

May import what every built-in may; python-flint only in the helper process.
Never computes the value of an expression in the service's own process.
"""
