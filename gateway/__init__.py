"""The mesh's door: a thin HTTP service that streams uploads into Redis and tells clients how their jobs go."""
