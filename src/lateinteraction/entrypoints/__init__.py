"""What drives the library from outside: the command line."""
