"""Everything put together: configuration, the `sieve` command, the Ray launcher, observation, reports, sweeps.

May import every other package; inside: config < rundir < observe, reports < launch < sweeps < cli.
Never imports torch, vllm or ray before a command needs them: `sieve --help` starts in well under a second.
"""
