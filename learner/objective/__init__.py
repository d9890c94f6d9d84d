"""The objective: verified sequences in, one detached coefficient per sequence or token out. Pure tensors, no I/O.

Every objective — α-DPG and the baselines it is compared with — is a function from `Sequences` to coefficients, so all
of them train through one loss and differ by one configuration key, `learner.objective.name`:

    loss = −(1/N) Σ_i Σ_t coefficient_{i,t} · log π_θ(y_{i,t} | y_{i,<t}) / L_norm          (L_norm a constant)

    settings.py       ObjectiveSettings, free of torch so that a configuration is validated without it
    sequences.py      Sequences, Coefficients
    registry.py       build(settings, length_norm=…) -> Objective
    ratios.py         π_θ/μ and the staleness corrections; groups.py: sums without sample i
    alpha_dpg.py      the default; one file per baseline beside it
    diagnostics.py    what a batch tells about staleness, truncation and the distance to the target
    exact.py          the oracle: every quantity by enumeration of a tiny model's whole output space

May import broker.settings and torch; `learner.objective.settings` must stay importable without torch.
Never reads a file, never asks the broker.
"""
