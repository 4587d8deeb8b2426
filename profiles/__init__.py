"""Device profiles that ship with the project: data only, see README.md."""
