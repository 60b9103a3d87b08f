"""From a previous placement to a better one in few moves."""
