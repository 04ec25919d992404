"""Configurations of other daemons as policies of ours; `ikctl import` is its command."""
