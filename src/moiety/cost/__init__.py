"""Hardware turns work into seconds, bytes and watts here and nowhere else."""
