"""What runs on a cluster: the commands behind launch.sh."""
