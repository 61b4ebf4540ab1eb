"""Rasters as they are in the wild, and the one door to where they and our results lie."""
