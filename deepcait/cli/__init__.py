"""The command: one small file a verb, which parses, calls and prints."""
