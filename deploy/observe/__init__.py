"""The state of a run at one moment: the probe, the diagnosis of stalls, and its views for terminals and Prometheus.

May import broker, learner.step_record, deploy.config and deploy.rundir.
Never changes the run.
"""
