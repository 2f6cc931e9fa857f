"""A coordinator from a backup: what is put back, and what it owes for the time since."""
