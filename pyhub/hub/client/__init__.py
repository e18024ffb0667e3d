"""A program's side of the hub: its line to the broker, and its channels' notifications."""
