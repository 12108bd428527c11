"""The protocols of the APIs: what requests and answers mean. Nothing here uses Twisted.

In reading order: endpoints (the table), endpoint (a row, and a Call), requests, shaping, envelope, walk, skip (JSON to
a Call, and back), forms and multipart (for forms), answers and media (whole answers), refusals, context_overflow,
scanner, meaning, events, usual_event (streams), chat, hidden_usage, responses, messages, typed_events (the events of a protocol),
sse, usage and charges (tokens and their cost), error_bodies."""
