"""The broker: a shell of sockets (server) around tables that do no I/O (registry)."""
