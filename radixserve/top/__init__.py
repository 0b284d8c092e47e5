"""`radixserve top`: what a running server does, in a terminal, once a second. A plain HTTP client
of /metrics and /cache/tree; knows nothing of the server's internals.
"""
