"""What a user writes: the config file, table by table."""
