"""The format of a store: the names of its files, the file of a run, the row of a run. Knows bytes,
and not who reads or writes them.
"""
