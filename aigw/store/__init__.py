"""The limits of callers, counted by several gateways together in a Valkey or Redis.

In reading order: shared_store (admissions, settlements), stored_usage (looks), stored_accounts (accounts as the scripts
know them), scripts and script_parts (what runs in the store), store_debts (what it has missed), store_state (whether it
can be used), store_link, store_protocol (the connection).
"""
