"""The engine: scheduler, sequences and the process in which they live, and the client through which
the front talks to it.
"""
