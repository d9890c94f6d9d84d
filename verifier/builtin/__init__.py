"""The built-in verifiers, one module or folder each, reached by name only (verifier/protocol.py).

May import broker, verifier.protocol, verifier.helper_process and verifier.sandbox.
Never imports the service, and never another built-in.
"""
