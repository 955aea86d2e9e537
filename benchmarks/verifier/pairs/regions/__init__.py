"""Constructed pairs of sets, relations, systems, cases, families and residues."""
