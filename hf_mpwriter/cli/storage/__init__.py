"""Commands about the filesystem on which a run is kept."""
