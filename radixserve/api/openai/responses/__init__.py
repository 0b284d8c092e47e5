"""The Responses API of the OpenAI dialect: items in, items out, nothing stored."""
