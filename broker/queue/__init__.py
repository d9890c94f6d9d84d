"""The protocol on Redis: wire types, the Lua scripts of the state machine, admission, and one client per role.

May import broker.errors and broker.settings.
Never reads or writes files, and never carries weights.
"""
