"""`sieve run`: the services of a run as Ray actors, which are started, watched, restarted and drained here.

May import deploy.config, deploy.rundir, deploy.observe and deploy.reports; ray only when a run starts.
Never does a service's work.
"""
