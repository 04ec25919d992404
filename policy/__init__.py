"""What must be protected, how, and with whom."""
