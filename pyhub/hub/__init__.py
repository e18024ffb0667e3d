"""The Message Hub: where channels are found, and where their notifications run.

protocol (messages), keys and runtime (directory, finding a broker) serve both
sides: broker/ answers, client/ asks, message_hub is what users hold.
"""
