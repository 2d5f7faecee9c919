"""Raw images, masks, and annotation files."""
