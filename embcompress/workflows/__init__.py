"""The work of each command, one module a command, without the terminal."""
