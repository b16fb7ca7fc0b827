"""The command line: `main` parses, one module a command, `ui` has all looks."""
