"""The engine between providers and wires: events, the event log, the run, errors and settings.

It knows no vendor, no route and no wire format.
"""
