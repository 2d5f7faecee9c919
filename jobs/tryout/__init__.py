"""`try`: train on a folder of labeled images with nothing to set."""
