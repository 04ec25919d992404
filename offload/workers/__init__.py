"""Processes that carry packets: one worker, all of them as the daemon sees them, and how they outlive it."""
