"""Alerts by webhook: what is wrong now, and whom it is told."""
