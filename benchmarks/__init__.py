"""Side-by-side runs on real weights and photos: slow, resumable, each prints what it measured."""
