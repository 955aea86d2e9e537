"""What runs inside a sandbox. Sent there as source: standard library only, and nothing outside this folder."""
