"""The HTTP layer: OpenAI-style endpoints over an `EngineClient`. aiohttp lives here and nowhere
else.
"""
