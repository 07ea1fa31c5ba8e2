"""The command: one module per command, which parses options, calls the package and prints."""
