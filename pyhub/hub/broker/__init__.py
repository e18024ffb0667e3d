"""The broker: a shell of sockets (server) around a switchboard and its tables, without I/O."""
