"""A run at one moment: the snapshot, what is stuck and why, and its views for terminals and Prometheus.

May import broker, deploy.config and deploy.rundir.
Never changes a run.
"""
