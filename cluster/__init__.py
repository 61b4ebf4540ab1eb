"""Everything that touches Ray, with jobs/: the session, the actors, the dispatch loop."""
