"""The limits of callers, counted by several gateways together in a Valkey or Redis.

In reading order: shared_store (admissions, settlements), stored_accounts (accounts as the scripts know them), scripts,
script_parts (what runs in the store), store_debts (what it does not know yet), store_state (whether it can be used),
store_link and store_protocol (the connection).
"""
