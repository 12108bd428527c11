"""The straight path: a shorter way for calls that end as most do. Without this room every call goes the long way.

In reading order: path (what is assumed, and the two functions), plan (which calls may go it), call (one of them, and
where it takes the long way), stream (one whose answer is a stream), head (the headers of an answer).
"""
