"""What calls and training cost in tokens, seconds and money, computed from the log."""
