"""An HTTP server over the engine: OpenAI's API and Ollama's, for every target of the recipes that it serves.

A request's way: http → security → app → models, chat, completions, ollama, tokens or status → calls → admission →
service, which gives it to the engine's worker → replies → streaming. `schema` and `answers` say what comes in
and goes out.
"""
