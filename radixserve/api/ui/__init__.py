"""The page for operators at /ui: its files, and the events that keep it up to date."""
