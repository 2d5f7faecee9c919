"""What is killed, cut or damaged while it runs, and what becomes of the run."""
