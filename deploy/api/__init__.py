"""The public Python interface, which the module `sieve` re-exports: runs started, watched and read.

May import deploy.config, deploy.rundir, deploy.reports and deploy.sweeps; pyarrow when a table is asked for.
Never starts a service in the calling process: a run is a process of the command `sieve`.
"""
