"""`feddp agent doctor`: what stands between this machine and its coordinator, a line a check.

Nothing here writes to `state.db`, opens the node's session, or sends anything of the data.
"""
