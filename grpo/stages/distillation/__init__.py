"""Stages in which a student learns from teachers: `opd` on its own completions."""
