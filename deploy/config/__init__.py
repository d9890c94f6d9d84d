"""The configuration: one pydantic tree, its checks against the files it names, and what a machine lacks for it.

May import the settings of every package and learner.data.rows.
Never starts anything.
"""
