"""Everything of the front process that is neither HTTP nor text: requests while they run, the
client of the engine, and the supervision of its process.
"""
