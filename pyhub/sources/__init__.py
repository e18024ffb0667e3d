"""Sources: programs that feed channels with frames, from a simulation or from a file."""
