"""The Message Hub: where channels are found, and where their notifications run.

protocol (messages) <- registry (who has what; no I/O) <- broker (sockets)
runtime (directory, keys, finding a broker) <- connection (to the broker)
notifications (per channel) and message_hub (what users hold) on top
"""
