"""Measurements: establishments beside strongSwan's, and the size and speed of the SADB (`ikctl bench`)."""
