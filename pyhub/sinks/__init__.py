"""Sinks: what programs make of the frames that they take from channels."""
