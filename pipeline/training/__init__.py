"""From a labelled scene to a trained network and its scores, in one process."""
