"""Text and token ids: chat templates, tokenising, detokenising, stop strings. No HTTP, no torch."""
