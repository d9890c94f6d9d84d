"""`sieve run`: the services as Ray actors, started, watched, restarted and drained.

May import deploy.config, deploy.rundir, deploy.observe and deploy.reports; ray only when a run starts.
Never does a service's work.
"""
