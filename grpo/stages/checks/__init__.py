"""What is checked about a run before its first step: its prompts, and its engine against its trainer."""
