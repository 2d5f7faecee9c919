"""From shards to batches, optimiser steps and scores."""
