"""Monitoring: what a terminal shows about channels and their frames."""
