"""The engine: scheduler, sequences and the process they live in, and the client that the front
talks to it with.
"""
