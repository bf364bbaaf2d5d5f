"""The tables and their migrations; nothing else."""
