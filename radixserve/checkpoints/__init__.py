"""Finds, fetches, converts and opens the files of a model, and reads its weights.

Everything that is refused because of a file or a configuration is refused here, before anything
large is read. Importing this package imports no torch; most of its modules do.
"""
