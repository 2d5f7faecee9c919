"""Real clusters on this machine: hosts with their own network, Ray, and SLURM."""
