"""The commands `radixserve cache`: listing, checking, repairing, exporting and importing, also
beside a server that holds the folder.
"""
