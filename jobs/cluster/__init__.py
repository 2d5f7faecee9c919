"""Commands on clusters: Ray, its job server, SLURM, and Kubernetes."""
