"""The folder of a store while one process holds it: files, index, budget, lock, and `DiskStore`, by
which an engine uses it. Importing a module of it imports torch only where K/V is read or written.
"""
