"""Confined execution of untrusted programs, at the strongest level that works on this machine.

May import the standard library only, and nothing else of sieve: the spawner is started without site-packages.
Never trusts what a program says about itself: everything in an Outcome but its output was measured outside.
"""
