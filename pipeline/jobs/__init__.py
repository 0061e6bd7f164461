"""The jobs of the command line, from the config to the files."""
