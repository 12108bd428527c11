"""An OpenAI-compatible gateway: a client names a route, and the gateway tries its providers until one answers."""

__version__ = "0.2.0"
