"""The objective: verified sequences in, one detached coefficient per sequence or token out. Pure tensors, no I/O.

Every objective, α-DPG and those it is compared with, is a function from `Sequences` to coefficients, so that all of
them train through one loss and differ by one configuration section, `learner.objective`:

    loss = −(1/N) Σ_i Σ_t coefficient_{i,t} · log π_θ(y_{i,t} | y_{i,<t}) / L_norm          (L_norm a constant)

    settings.py       a settings class per objective, free of torch so that a configuration is validated without it
    protocol.py       Objective, Context: what is implemented, and what it is told beside the sequences
    registry.py       build(settings, length_norm=…) -> ConfiguredObjective
    sequences.py      Sequences, Coefficients
    ratios.py         π_θ/μ and the staleness corrections; groups.py: sums without sample i
    alpha_dpg.py      the default objective; one file per other objective beside it
    diagnostics.py    staleness, truncation and the distance to the target, estimated from a batch
    exact.py          the oracle: every quantity by enumeration of a tiny model's whole output space

May import broker.errors, broker.extensions, broker.settings, learner.difficulty and torch;
`learner.objective.settings` must stay importable without torch.
Never reads a file, never asks the broker.
"""
