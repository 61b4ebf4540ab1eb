"""Tilewright's library: segment rasters too large for one GPU, one machine or one night. Never imports ray.

Six rooms on one corridor; a room imports only from the rooms before it:
geometry, imagery, models, inference, training, results.
"""
