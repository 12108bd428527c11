"""The protocols of the APIs: what requests and answers mean. Nothing here uses Twisted.

In reading order: endpoints (the table), endpoint (a row, and a Call), requests, shaping, envelope, walk, long_messages,
skip (JSON to a Call, and back), forms, multipart (for forms), answers, media (whole answers), refusals,
context_overflow, scanner, facts, like_events, known_events, meaning, events (streams), chat, hidden_usage, responses,
messages, typed_events (those of a protocol), sse, usage, charges (tokens and their cost), error_bodies."""
