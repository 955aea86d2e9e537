"""What runs inside a sandbox. Sent there as source: standard library only, no imports from outside this folder."""
