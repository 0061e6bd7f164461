"""What a run found, as values and as tables; what it would do and cost; its progress."""
