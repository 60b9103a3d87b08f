"""How tokens reach the slots that serve them: flat, dedup, hierarchical; one order of adding."""
