"""The choice of the confinement level: a probe program is run at each level, strongest first, until one confines it.

bubblewrap (own namespaces) > landlock (needs no new namespaces, so it works in an unprivileged pod) > refusal. A kernel
feature that is compiled in may still be forbidden by a container's own filter, so versions prove nothing.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from verifier.sandbox import kernel, seccomp
from verifier.sandbox.limits import GROUPED, LEVELS, Level, Limits, SandboxTrouble, SandboxUnavailable
from verifier.sandbox.sandbox import Sandbox

log = logging.getLogger("sieve.sandbox")

REMEDY = (
    "install bubblewrap (apt install bubblewrap) where user namespaces are allowed, or run on Linux 5.13 or later with "
    "Landlock enabled (lsm=landlock,…; the container's seccomp profile must allow its calls); or, only where every "
    "program may be trusted with this service's files and network, set sandbox.level = unsafe"
)
_CONFINED = 7
_PROBE = """
read secret < "$1" && exit 3
echo seen > inside || exit 4
read own < given || exit 5
test "$own" = given || exit 6
exit 7
"""
_MEANING = {
    3: "a program could read a file outside its directory",
    4: "a program could not write in its own directory",
    5: "a program could not read a file it was given",
    6: "a program read something else than the file it was given",
}


def open_sandbox(
    level: Literal["auto"] | Level = "auto",
    *,
    readable: Sequence[Path | str] = (),
    programs: bool = True,
    directory: Path | None = None,
) -> Sandbox:
    """A sandbox at the strongest level that works, or at exactly `level`; the rest as for Sandbox.

    Raises SandboxUnavailable.
    """
    if level == "unsafe":
        log.warning("sandbox level unsafe: programs can read what this service can, and use the network")
        sandbox = Sandbox("unsafe", readable=readable, programs=programs, directory=directory)
        _log_bounds(sandbox)
        return sandbox
    tried: list[str] = []
    for candidate in LEVELS if level == "auto" else (level,):
        sandbox = Sandbox(candidate, readable=readable, programs=programs, directory=directory)
        trouble = probe(sandbox)
        if not trouble:
            _log_bounds(sandbox)
            return sandbox
        sandbox.close()
        tried.append(f"{candidate}: {trouble}")
    raise SandboxUnavailable(f"untrusted programs cannot be confined here ({'; '.join(tried)}); {REMEDY}")


def _log_bounds(sandbox: Sandbox) -> None:
    bounds = sandbox.bounds
    log.info("sandbox level %s; memory is bounded by %s, disk by %s", sandbox.level, bounds.memory, bounds.disk)
    if bounds.memory not in GROUPED:
        log.warning(
            "no control group for programs (%s): memory is limited for each process, and measured for all of them; to "
            "bound it exactly, delegate a control group to this service (systemd: Delegate=yes)",
            "; ".join(bounds.why),
        )
    if bounds.disk != "tmpfs":
        log.warning("no tmpfs for programs (%s): disk use is measured, not bounded", "; ".join(bounds.why))


def probe(sandbox: Sandbox) -> str:
    """Why this sandbox does not confine programs, or "" if it does; found by running a small program in it."""
    missing = _missing(sandbox.level)
    if missing:
        return missing
    with tempfile.NamedTemporaryFile(prefix="sieve-outside-") as outside:
        outside.write(b"secret\n")
        outside.flush()
        Path(outside.name).chmod(0o644)
        try:
            outcome = sandbox.run(
                ["/bin/sh", "-c", _PROBE, "sh", outside.name], {"given": "given\n"}, limits=Limits(wall_seconds=10)
            )
            bounds = sandbox.bounds
        except SandboxTrouble as error:
            return str(error)
    if bounds.memory == "none":
        return f"nothing bounds the memory of programs: {'; '.join(bounds.why)}"
    if (outcome.ended, outcome.code) == ("exit", _CONFINED):
        return ""
    how = _MEANING.get(outcome.code, f"the probe ended by {outcome.ended} {outcome.code}")
    return f"{how} {outcome.stderr_tail}".strip()


def _missing(level: Level) -> str:
    if not seccomp.supported() and level != "unsafe":
        return "there is no system call table for this architecture"
    if level == "landlock" and kernel.landlock_abi() == 0:
        return "the kernel offers no Landlock, or a filter forbids it"
    if level == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not on PATH"
    return ""
