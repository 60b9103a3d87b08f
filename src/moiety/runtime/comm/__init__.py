"""Communication: groups of ranks, their collectives, classes of urgency, bytes by tier, and bulk transfers."""
