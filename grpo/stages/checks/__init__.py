"""What is checked about a run before its first step: its prompts, its engine against its trainer; and drafts."""
