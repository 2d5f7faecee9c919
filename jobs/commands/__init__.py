"""The commands of `./launch.sh`, with their arguments and help, by topic."""
