"""The supervisor's process: broker, orchestrator and state backend, and the workers' parent.

It never unpickles: argument, result and exception bytes are opaque here.
"""
