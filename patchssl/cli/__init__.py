"""The command line: parse, call, print. Whatever is slow to import is imported inside the commands."""
