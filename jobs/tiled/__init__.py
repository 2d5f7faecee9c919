"""Segment very large images in tiles that overlap, and merge the results across their seams."""
