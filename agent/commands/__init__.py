"""The commands, one per file, each loaded when it is called."""
