"""What nodes are worth, and which of them are equal."""
