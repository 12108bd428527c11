"""An OpenAI-compatible gateway: one route in, several providers behind it, the first answer that works out."""

__version__ = "0.2.0"
