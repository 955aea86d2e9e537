"""From token rows to log-probs: attention over packed rows, the head in chunks, a teacher's head, drafts."""
