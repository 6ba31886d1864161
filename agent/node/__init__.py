"""The node agent: who is there, who waits too long, and what becomes of it."""
